"""What came of a run of build_pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.storage import RunState


class TooManyRefused(RuntimeError):  # noqa: N818
    """A larger share of the candidates was refused than `inputs.max_refused_share` allows. All others are stored."""

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
    def refused_share(self) -> float:
        """Share of the candidates looked at that were refused."""
        refused = sum(self.refused.values())
        return refused / (refused + self.built) if refused else 0.0
