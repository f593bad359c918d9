"""What a run of precompute_features would do: which shard stores what, what it will weigh, and what is missing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ezigen.config import FeatureConfig, FeatureInputs, StackConfig
from tasks.features.estimates import Estimate
from tasks.features.identity import FeatureIdentity
from tasks.features.ownership import ShardOwnership
from tasks.features.writer import ShardFiles
from tasks.storage import Locations, OutputFolder


@dataclass(frozen=True)
class FeaturePlan:
    """What is to do. It holds less than one byte per pair."""

    inputs: FeatureInputs
    config: FeatureConfig
    model: StackConfig
    identity: FeatureIdentity
    estimate: Estimate
    """Of the whole store, what is stored already included."""
    pairs_digest: str
    """Digest of the pairs' bytes, which decides about what is in which shard."""
    owned: Mapping[str, ShardOwnership] = field(repr=False)
    """By shard, in the order of names."""
    done: Mapping[str, ShardFiles] = field(repr=False)
    damaged: tuple[str, ...]
    """Shards that were stored and are not what was written; they are among `to_do`."""
    finished: bool
    """Whether manifest.json says that nothing is left to do, and nothing is."""

    @property
    def shards(self) -> tuple[str, ...]:
        """All shards, by name."""
        return tuple(self.owned)

    @property
    def to_do(self) -> tuple[str, ...]:
        """Shards that are missing or damaged."""
        return tuple(shard for shard in self.owned if shard not in self.done)

    @property
    def num_pairs(self) -> int:
        """Pairs of the whole set."""
        raise NotImplementedError

    @property
    def num_subjects(self) -> int:
        """Distinct subjects of the whole set."""
        raise NotImplementedError

    @property
    def num_targets(self) -> int:
        """Distinct target pictures of the whole set."""
        raise NotImplementedError

    @property
    def num_texts(self) -> int:
        """Distinct captions of the whole set."""
        raise NotImplementedError

    def describe(self) -> list[tuple[str, str]]:
        """The plan as a table of two columns, for a terminal or a page."""
        raise NotImplementedError


def plan_features(
    inputs: FeatureInputs,
    config: FeatureConfig,
    model: StackConfig,
    output: OutputFolder,
    locations: Locations | None = None,
    *,
    num_workers: int = 1,
    check: Callable[[], None] = lambda: None,
) -> FeaturePlan:
    """Reads what the pairs' files say of themselves, never their pictures, and decides what is to do. Writes nothing.

    `locations` carries the storage options of the pairs, `num_workers` is for the estimate of hours, `check` is the
    lease's. Raises ConfigurationError if there is no finished set of pairs, if its pictures have another size than the
    model's, if the store would become larger than `inputs.max_gib`, or if the output holds other features or those of
    other pairs, naming what differs.
    """
    raise NotImplementedError
