"""Work that is divided into shards: the one engine behind build_pairs and precompute_features, on Ray Data."""

from tasks.sharding.progress import ShardMeter, ShardProgress
from tasks.sharding.report import ShardReport, store_file
from tasks.sharding.run import run_shards
from tasks.sharding.work import ShardFailure, ShardsFailed, ShardWork
from tasks.storage.stored_file import StoredFile

__all__ = [
    "ShardFailure",
    "ShardMeter",
    "ShardProgress",
    "ShardReport",
    "ShardWork",
    "ShardsFailed",
    "StoredFile",
    "run_shards",
    "store_file",
]
