"""What a run over shards tells Prometheus."""

import time
from collections.abc import Mapping

from tasks.monitoring import metrics as m
from tasks.sharding.progress import ShardMeter
from tasks.sharding.report import ShardReport

_PERIOD_S = 1.0


class ShardMetrics(m.RunMetrics):
    """Of one run of a flow. `meter` is the run's own; for the rest see `RunMetrics`."""

    def __init__(self, flow: str, run: str, meter: ShardMeter, *, run_id: str, model: str = "") -> None:
        super().__init__(flow, run, run_id=run_id, model=model)
        self._meter = meter
        self._told_s = 0.0
        self._num_deaths = 0
        self.add(m.ITEMS, 0, status="done", error_code="")
        self.add(m.SHARDS_WRITTEN, 0)

    def shard_made(self, report: ShardReport) -> None:
        """One more shard is stored."""
        self.add(m.SHARDS_WRITTEN)
        self.add(m.ITEMS, report.rows, status="done", error_code="")
        for reason, number in report.refused.items():
            self.add(m.ITEMS, number, status="refused", error_code=reason)
        self.add_counts({"seconds.shard": report.seconds})

    def worker_counted(self, counts: Mapping[str, float]) -> None:
        """What a worker has counted since its last answer; its first one says how long it loaded."""
        self.add_counts(counts)
        if "seconds.load" in counts:
            self.add(m.WORKER_STARTS)

    def tick(self, num_wanted: int, num_ready: int, in_flight: int, num_deaths: int, *, force: bool = False) -> None:
        """The moment, once a second. Deaths are all that there have been in this call of the engine."""
        now = time.monotonic()
        if now - self._told_s < _PERIOD_S and not force:
            return
        self._told_s = now
        meter = self._meter
        for state, number in (("expected", meter.total), ("done", meter.done), ("failed", meter.refused)):
            self.set(m.RUN_WORK, number, unit=meter.unit, state=state)
        waiting = max(0, meter.shards_total - meter.shards_done - in_flight)
        for state, number in (("in_flight", in_flight), ("waiting", waiting)):
            self.set(m.RUN_WORK, number, unit="shards", state=state)
        for state, number in (("wanted", num_wanted), ("ready", num_ready), ("busy", in_flight)):
            self.set(m.WORKERS, number, state=state)
        self.add(m.WORKER_LOSSES, max(0, num_deaths - self._num_deaths), reason="died")
        self._num_deaths = num_deaths
        self.add_own_traffic()
