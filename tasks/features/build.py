"""One shard of a feature store, from stored pairs through the frozen networks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ezigen.config import FeatureConfig, StackConfig
from tasks.features.identity import FeatureIdentity
from tasks.features.ownership import ShardOwnership
from tasks.sharding import ShardReport
from tasks.storage import Locations, OutputFolder


@dataclass
class FeatureWork:
    """The ShardWork of precompute_features; see `tasks.sharding.ShardWork`.

    What is stored of a picture or a text depends on it, on the model and on `config` alone, neither on its shard nor on
    what is computed beside it.
    """

    pairs_uri: str
    output: OutputFolder
    identity: FeatureIdentity
    config: FeatureConfig
    model: StackConfig
    owned: Mapping[str, ShardOwnership] = field(repr=False)
    locations: Locations = field(default_factory=Locations)
    num_threads: int = 1

    def open(self) -> None:
        """Loads the networks. Raises ConfigurationError if the model is not the one that was planned with."""
        raise NotImplementedError

    def make(self, shard: str) -> ShardReport:
        """Computes and stores one shard. Its report counts subjects.

        Raises DamagedPairs if a stored picture is not the one that was written.
        """
        raise NotImplementedError
