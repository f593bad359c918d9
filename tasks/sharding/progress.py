"""How far a run over shards is: counts, a rate over the last minute, and what is left."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tasks.sharding.report import ShardReport

Unit = Literal["pairs", "subjects", "images"]

_WINDOW_S = 60.0
_MIN_PERIOD_S = 0.5


@dataclass(frozen=True)
class ShardProgress:
    """A moment of a run. `total`, `done` and `refused` count what `unit` says; rates are per second."""

    total: int
    done: int
    refused: int
    shards_total: int
    shards_done: int
    in_flight: int
    """Shards that workers hold."""
    rate_per_s: float
    eta_s: float | None
    """None while nothing has finished yet."""
    num_workers: int
    """Workers that are ready."""
    unit: Unit


class ShardMeter:
    """Counts finished shards and reports at most twice a second. `clock` is in seconds and never goes back.

    What earlier runs stored counts as done from the start, but not into the rate.
    """

    def __init__(
        self,
        unit: Unit,
        total: int,
        shards_total: int,
        report: Callable[[ShardProgress], None] | None,
        *,
        done: int = 0,
        refused: int = 0,
        shards_done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unit, self.total, self.shards_total = unit, total, shards_total
        self.done, self.refused, self.shards_done = done, refused, shards_done
        self._report = report
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque([(clock(), done)])
        self._reported_at = -_MIN_PERIOD_S

    def add(self, report: ShardReport) -> None:
        """One more shard is stored."""
        self.done += report.rows
        self.refused += sum(report.refused.values())
        self.shards_done += 1

    def expect(self, total: int, shards_total: int) -> None:
        """The run turned out to be longer, as by another round."""
        self.total, self.shards_total = total, shards_total

    def tick(self, in_flight: int, num_workers: int, *, force: bool = False) -> None:
        """Reports if it is time to."""
        now = self._clock()
        if self._report is None or (now - self._reported_at < _MIN_PERIOD_S and not force):
            return
        self._reported_at = now
        self._report(self.measure(now, in_flight, num_workers))

    def measure(self, now: float, in_flight: int, num_workers: int) -> ShardProgress:
        """The state at a time of the clock."""
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and self._recent[1][0] <= now - _WINDOW_S:
            self._recent.popleft()
        since, before = self._recent[0]
        rate = (self.done - before) / (now - since) if now > since else 0.0
        left = max(0, self.total - self.done)
        return ShardProgress(
            total=self.total,
            done=self.done,
            refused=self.refused,
            shards_total=self.shards_total,
            shards_done=self.shards_done,
            in_flight=in_flight,
            rate_per_s=rate,
            eta_s=left / rate if rate > 0 else None,
            num_workers=num_workers,
            unit=self.unit,
        )
