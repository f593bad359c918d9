"""What a run of build_pairs would do: which candidates become pairs, and in which shards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ezigen.config import PairConfig, PairInputs
from tasks.storage import Locations, OutputFolder


@dataclass(frozen=True)
class SourcePlan:
    """One source: `candidates` of the data set at most, `wanted` by the inputs, `planned` in all rounds so far."""

    candidates: int
    wanted: int
    planned: int
    groups: int
    """Pictures (COCO) or objects of videos (YouTube-VIS) with at least one candidate."""
    not_selected: Mapping[str, int] = field(default_factory=dict)
    """Objects that the selection left out, by reason."""


@dataclass(frozen=True)
class PairPlan:
    """What is to do. The units themselves lie in plan/<shard>.parquet of the output, once they are stored."""

    identity: str
    """Digest of what decides about the pairs: settings, data sets, numbers wanted."""
    inputs: PairInputs
    config: PairConfig
    settings: Mapping[str, str | int | float | bool]
    sources: Mapping[str, SourcePlan]
    shards: tuple[str, ...]
    """All shards of all rounds planned so far, by name."""
    done: tuple[str, ...]
    num_rounds: int
    finished: bool
    """Whether manifest.json says that nothing is left to do."""

    @property
    def to_do(self) -> tuple[str, ...]:
        """Shards that are not stored yet."""
        stored = set(self.done)
        return tuple(shard for shard in self.shards if shard not in stored)

    def describe(self) -> list[tuple[str, str]]:
        """The plan as a table of two columns, for a terminal or a page."""
        raise NotImplementedError


def plan_pairs(
    inputs: PairInputs,
    config: PairConfig,
    output: OutputFolder,
    locations: Locations | None = None,
    *,
    store: bool = True,
    check: Callable[[], None] = lambda: None,
) -> PairPlan:
    """Reads the annotations, decides which candidates become pairs, and stores the shards' units in the output.

    A plan that the output holds already is used again without reading annotations. `store=False` writes nothing: for a
    look at the numbers. `locations` carries the storage options for data sets on S3. `check` is the lease's.
    Raises ConfigurationError if a data set cannot be read, or if the output was planned with other settings, naming
    the one that changed.
    """
    raise NotImplementedError
