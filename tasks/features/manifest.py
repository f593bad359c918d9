"""store.json, manifest.json and what is known of a store's finished shards."""

from collections.abc import Mapping, Sequence

from tasks.features.identity import FeatureIdentity
from tasks.features.writer import ShardFiles
from tasks.storage.folder import OutputFolder


def write_store(output: OutputFolder, identity: FeatureIdentity, *, row_group_mib: int = 0) -> None:
    """Stores store.json, which a run writes before anything else."""
    raise NotImplementedError


def read_store(output: OutputFolder) -> FeatureIdentity | None:
    """The identity in store.json, None where there is none. Raises ConfigurationError if it cannot be understood."""
    raise NotImplementedError


def find_done_shards(output: OutputFolder, identity: FeatureIdentity, *, verify: bool = False) -> dict[str, ShardFiles]:
    """The finished shards by name: samples/<shard>.parquet exists, and the objects it vouches for have their sizes.

    verify: compares every object's checksum too, which reads the whole store. A shard of another identity, a damaged
    or an incomplete one is left out: it is to be made again.
    """
    raise NotImplementedError


def write_index(output: OutputFolder, identity: FeatureIdentity, shards: Mapping[str, ShardFiles]) -> None:
    """Stores index.parquet and then manifest.json, which makes the store readable; `shards` are all of its shards."""
    raise NotImplementedError


__all__: Sequence[str] = ("find_done_shards", "read_store", "write_index", "write_store")
