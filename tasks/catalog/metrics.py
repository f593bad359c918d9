"""What a catalog run tells Prometheus."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ezigen.config import ErrorCode
from tasks.catalog.progress import ProgressMeter
from tasks.catalog.results import ResultRow
from tasks.monitoring import metrics as m

if TYPE_CHECKING:
    from tasks.cluster.pool import ActorPool

_PERIOD_S = 1.0


class CatalogMetrics(m.RunMetrics):
    """Of one run; see `RunMetrics`."""

    def __init__(self, run: str, *, run_id: str, model: str) -> None:
        super().__init__("personalize_catalog", run, run_id=run_id, model=model)
        self._told_s = 0.0
        self._losses: Counter[str] = Counter()
        self._num_requeued = 0
        self._num_shards = 0
        for code in ("", *ErrorCode):
            self.add(m.ITEMS, 0, status="failed" if code else "done", error_code=code)
        for metric in (m.ITEMS_REQUEUED, m.SHARDS_WRITTEN):
            self.add(metric, 0)

    def item_ended(self, row: ResultRow) -> None:
        """One more row, refused ones included."""
        self.add(m.ITEMS, status=row.status, error_code=row.error_code or "")
        if row.num_loops is not None:
            self.observe(m.LOOPS, row.num_loops)

    def worker_counted(self, counts: Mapping[str, float]) -> None:
        """What a worker has counted since its last report; its first one says how long it loaded."""
        self.add_counts(counts)
        if "seconds.load" in counts:
            self.add(m.WORKER_STARTS)

    def shards_written(self, num_shards: int) -> None:
        """So many shards are stored by now."""
        self.add(m.SHARDS_WRITTEN, num_shards - self._num_shards)
        self._num_shards = num_shards

    def tick(self, meter: ProgressMeter, pool: "ActorPool[Any, Any]", num_wanted: int, *, force: bool = False) -> None:
        """The moment, once a second."""
        now = time.monotonic()
        if now - self._told_s < _PERIOD_S and not force:
            return
        self._told_s = now
        planner = pool.planner
        work = {
            "expected": meter.total,
            "done": meter.done,
            "failed": meter.failed,
            "in_flight": planner.num_in_flight,
            "waiting": planner.num_waiting,
        }
        for state, number in work.items():
            self.set(m.RUN_WORK, number, unit="images", state=state)
        for state, number in {"wanted": num_wanted, "ready": planner.num_ready, "busy": planner.num_busy}.items():
            self.set(m.WORKERS, number, state=state)
        for reason, number in (pool.losses - self._losses).items():
            self.add(m.WORKER_LOSSES, number, reason=reason)
        self.add(m.ITEMS_REQUEUED, pool.num_requeued - self._num_requeued)
        self._losses, self._num_requeued = pool.losses.copy(), pool.num_requeued
        self.add_own_traffic()
