"""What a worker counts into Ray's metrics, for dashboards and alarms."""

from collections.abc import Mapping

from tasks.catalog.results import ResultRow


class WorkerMetrics:
    """Counters of one worker process. Made inside it, because Ray's metrics belong to a process."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        self._items = Counter("ezigen_items", "Items that ended, by status and error code.", ("status", "error_code"))
        self._by_group = {
            "unet_calls": (Counter("ezigen_unet_calls", "UNet evaluations, each branch one.", ("phase",)), "phase"),
            "seconds": (Counter("ezigen_worker_seconds", "Seconds of workers, by part.", ("part",)), "part"),
            "slot_steps": (Counter("ezigen_slot_steps", "Slots of network calls, by lane.", ("lane",)), "lane"),
            "filled": (Counter("ezigen_filled_slot_steps", "Slots that an item was in, by lane.", ("lane",)), "lane"),
            "hits": (Counter("ezigen_cache_hits", "Results that were there already, by cache.", ("cache",)), "cache"),
            "flop": (Counter("ezigen_flop", "Floating-point operations of networks, by part.", ("part",)), "part"),
            "misses": (Counter("ezigen_cache_misses", "Results to be computed, by cache.", ("cache",)), "cache"),
        }
        self._loops = Histogram("ezigen_loops", "Loops per image.", boundaries=[0.5 + count for count in range(16)])

    def count(self, row: ResultRow, counts: Mapping[str, float]) -> None:
        """Counts one item, and what its worker counted since the last one."""
        self._items.inc(1, {"status": row.status, "error_code": row.error_code.value if row.error_code else ""})
        if row.num_loops is not None:
            self._loops.observe(row.num_loops)
        for name, value in counts.items():
            group, _, part = name.partition(".")
            if value > 0 and group in self._by_group:
                counter, tag = self._by_group[group]
                counter.inc(value, {tag: part})
