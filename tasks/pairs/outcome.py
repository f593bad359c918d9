"""What came of a run of build_pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.storage import RunState


class TooManyRefused(RuntimeError):  # noqa: N818
    """Refusals leave a larger share of the wanted pairs missing than `inputs.max_refused_share` allows.

    All others are stored.
    """

    def __init__(self, message: str, outcome: "PairOutcome") -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True)
class SourceOutcome:
    """One source. `built` is what the output holds; `candidates` what the data set offers at most."""

    wanted: int
    built: int
    candidates: int

    @property
    def missing(self) -> int:
        """Pairs that were asked for and that the data set could not give."""
        return max(0, self.wanted - self.built)

    @property
    def expected(self) -> int:
        """Pairs that there would be if no candidate were refused."""
        return min(self.wanted, self.candidates)


@dataclass(frozen=True)
class PairOutcome:
    """The end of a run, in numbers. `built` and `refused` are those of the whole output, earlier runs included."""

    run_id: str
    state: RunState
    built: int
    refused: Mapping[str, int] = field(default_factory=dict)
    """By reason; what the selection left out is in the plan."""
    per_source: Mapping[str, SourceOutcome] = field(default_factory=dict)
    seconds: float = 0.0
    shards_made: int = 0
    shards_kept: int = 0
    """Shards that earlier runs had stored."""
    num_rounds: int = 1

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.state == "stopped"

    @property
    def nothing_to_do(self) -> bool:
        """Whether everything was there already."""
        return self.shards_made == 0 and self.state == "finished"

    @property
    def expected(self) -> int:
        """Pairs that there would be if no candidate were refused."""
        return sum(source.expected for source in self.per_source.values())

    @property
    def refused_share(self) -> float:
        """Share of the expected pairs that refusals left missing.

        Not of the refusals themselves: an object of a video that never fits is refused again and again, as often as
        frames are drawn, and others give the pairs that it does not.
        """
        return max(0, self.expected - self.built) / self.expected if self.expected else 0.0
