"""What a worker counts into Ray's metrics, for dashboards and alarms."""

from collections.abc import Iterable, Mapping

from tasks.catalog.results import ResultRow


class WorkerMetrics:
    """Counters of one worker process. Made inside it, because Ray's metrics belong to a process."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        self._items = Counter("ezigen_items", "Items that ended, by status and error code.", ("status", "error_code"))
        self._calls = Counter("ezigen_unet_calls", "UNet evaluations, each guidance branch counting one.")
        self._seconds = Counter("ezigen_worker_seconds", "Busy seconds of workers, by part.", ("part",))
        self._loops = Histogram("ezigen_loops", "Loops per image.", boundaries=[0.5 + count for count in range(16)])

    def count(self, rows: Iterable[ResultRow], seconds: Mapping[str, float]) -> None:
        """Counts one batch."""
        for row in rows:
            code = row.error_code.value if row.error_code else ""
            self._items.inc(1, {"status": row.status, "error_code": code})
            if row.num_unet_calls:
                self._calls.inc(row.num_unet_calls)
            if row.num_loops is not None:
                self._loops.observe(row.num_loops)
        for part, value in seconds.items():
            if value > 0:
                self._seconds.inc(value, {"part": part})
