"""How far a run is: counts, a rate over the last minute, and what is left."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ezigen.config import ErrorCode
from tasks.catalog.results import ResultRow

_WINDOW_S = 60.0
_MIN_PERIOD_S = 0.5


@dataclass(frozen=True)
class Progress:
    """A moment of a run. `total` counts the items of this run, refused rows among them; rates are per second."""

    total: int
    done: int
    failed: int
    in_flight: int
    rate_per_s: float
    eta_s: float | None
    """None while nothing has finished yet."""
    counts_by_code: Mapping[ErrorCode, int] = field(default_factory=dict)
    num_workers: int = 0
    """Workers that have loaded their model."""

    @property
    def finished(self) -> int:
        """Items that have a result row, or will have one with the next shard."""
        return self.done + self.failed


class ProgressMeter:
    """Counts rows and reports at most twice a second. `clock` is in seconds and never goes back."""

    def __init__(
        self, total: int, report: Callable[[Progress], None] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self.by_code: Counter[ErrorCode] = Counter()
        self._report = report
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._reported_at = -_MIN_PERIOD_S

    def add(self, row: ResultRow) -> None:
        """One more item has ended."""
        if row.status == "done":
            self.done += 1
            return
        self.failed += 1
        if row.error_code is not None:
            self.by_code[row.error_code] += 1

    def tick(self, in_flight: int, num_workers: int, *, force: bool = False) -> None:
        """Reports if it is time to."""
        now = self._clock()
        if self._report is None or (now - self._reported_at < _MIN_PERIOD_S and not force):
            return
        self._reported_at = now
        self._report(self._measure(now, in_flight, num_workers))

    def _measure(self, now: float, in_flight: int, num_workers: int) -> Progress:
        finished = self.done + self.failed
        self._recent.append((now, finished))
        while len(self._recent) > 2 and self._recent[1][0] <= now - _WINDOW_S:
            self._recent.popleft()
        since, before = self._recent[0]
        rate = (finished - before) / (now - since) if now > since else 0.0
        return Progress(
            total=self.total,
            done=self.done,
            failed=self.failed,
            in_flight=in_flight,
            rate_per_s=rate,
            eta_s=(self.total - finished) / rate if rate > 0 else None,
            counts_by_code=dict(self.by_code),
            num_workers=num_workers,
        )
