"""The feature store: what the frozen networks say about subjects, targets and texts, computed once.

The format is described in docs/features.md.
"""

from tasks.features.estimates import Estimate, estimate
from tasks.features.identity import FeatureIdentity, picture_id, subject_id, text_id
from tasks.features.manifest import find_done_shards, read_store, write_index, write_store
from tasks.features.model_shape import BlockLayout, EncodingCost, ModelShape
from tasks.features.packing import PackedFeatures
from tasks.features.reader import FeatureStore, StoredText, SubjectBatch, SubjectLatents, TargetLatent, TextBatch
from tasks.features.writer import FeatureShardWriter, ShardFiles

__all__ = [
    "BlockLayout",
    "EncodingCost",
    "Estimate",
    "FeatureIdentity",
    "FeatureShardWriter",
    "FeatureStore",
    "ModelShape",
    "PackedFeatures",
    "ShardFiles",
    "StoredText",
    "SubjectBatch",
    "SubjectLatents",
    "TargetLatent",
    "TextBatch",
    "estimate",
    "find_done_shards",
    "picture_id",
    "read_store",
    "subject_id",
    "text_id",
    "write_index",
    "write_store",
]
