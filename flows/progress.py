"""How far a run is, in the same words for every flow."""

from dataclasses import dataclass

from tasks.reports.wording import format_decimal, format_span


@dataclass(frozen=True)
class RunProgress:
    """A moment of a run. Rates are per second."""

    unit: str
    """What is counted, in the plural: images, pairs, subjects."""
    total: int
    done: int
    lost: int = 0
    """What was looked at and came to nothing."""
    lost_word: str = "failed"
    ended: int = 0
    """What counts towards the total: for images the failed ones too; a refused pair is made up for by another."""
    rate_per_s: float = 0.0
    eta_s: float | None = None
    """None while nothing has ended yet."""
    note: str = ""
    """What else a person wants to know now, in a few words."""

    @property
    def percent(self) -> float:
        """How much of the run is over, 0 to 100."""
        return min(100.0, 100.0 * self.ended / self.total) if self.total else 100.0

    def describe_counts(self) -> str:
        """12 of 36 done, 1 failed."""
        return f"{self.done:,} of {self.total:,} done{self.describe_lost()}"

    def describe_lost(self) -> str:
        """, 1 failed; empty if nothing is lost."""
        return f", {self.lost:,} {self.lost_word}" if self.lost else ""

    def describe_speed(self) -> str:
        """0.42 images/s, 1 min 12 s left; empty before the first one is done (refused ones end in no time)."""
        if not self.done or not self.rate_per_s:
            return ""
        left = "" if self.eta_s is None else f", {format_span(self.eta_s)} left"
        return f"{format_decimal(self.rate_per_s)} {self.unit}/s{left}"

    def describe(self) -> str:
        """Counts, speed and note in one line."""
        return ", ".join(part for part in (self.describe_counts(), self.describe_speed(), self.note) if part)
