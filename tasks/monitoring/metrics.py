"""Metrics of runs, exported by Ray for Prometheus. All are counted in the process that drives the run.

Workers send what they count with their results, so nothing of it is lost when they are killed at the end of a run, and
one process has all series of a run. Ray exports a process's metrics every 10 s, and once more when it leaves in order.
Counting never fails, and needs no Ray: what is counted before Ray is there is exported as soon as it is.
"""

import contextlib
import logging
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ezigen.engine import difference
from tasks.storage.traffic import TRAFFIC

logger = logging.getLogger(__name__)

WORKER_STATES = ("wanted", "ready", "busy")
LOSS_REASONS = ("died", "out_of_memory", "timed_out", "nobodys_fault")

_RUN_LABELS = ("flow", "run")
_MAX_LABEL_CHARS = 64
_Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Metric:
    """One metric, under the name that it has in Prometheus but for Ray's prefix `ray_`.

    labels: beside `flow` and `run`, which every metric has. buckets: upper bounds, of a histogram.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


def _counter(name: str, meaning: str, *labels: str) -> Metric:
    return Metric("counter", f"ezigen_{name}_total", labels, meaning)


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric("gauge", f"ezigen_{name}", labels, meaning)


RUN_ACTIVE = _gauge("run_active", "1 while the run works on Ray, 0 when it has ended.")
RUN_INFO = _gauge("run_info", "As run_active, with what tells this run from others.", "run_id", "model", "device")
RUN_WORK = _gauge(
    "run_work",
    "What there is to do and how far the run is. state: expected, done, failed, in_flight (workers hold it), waiting "
    "(for a worker, as far as it has been read). unit: images, pairs, subjects, shards, steps.",
    "unit",
    "state",
)
WORKERS = _gauge("workers", "state: wanted, ready (has loaded its model), busy (holds work).", "state")
WORKER_STARTS = _counter("worker_starts", "Workers that have loaded what they need.")
WORKER_LOSSES = _counter(
    "worker_losses",
    "Workers that ended before they should. reason: died, out_of_memory, timed_out, nobodys_fault.",
    "reason",
)
WORKER_SECONDS = _counter(
    "worker_seconds",
    "Seconds of all workers. part: load, text, draw, encode, invert, sketch, transfer, decode, compile, score, "
    "planning, waiting (for pictures), idle, and beside them read and store; of pairs and features shard; of training "
    "step and data, of its first worker.",
    "part",
)
ITEMS = _counter(
    "items",
    "Items that ended. status: done, failed, refused (a candidate for a pair). error_code: one of the closed list, or "
    "why a candidate was refused.",
    "status",
    "error_code",
)
ITEMS_REQUEUED = _counter("items_requeued", "Items that wait again because their worker was lost.")
LOOPS = Metric(
    "histogram",
    "ezigen_loops",
    (),
    "Appearance-transfer loops of an image.",
    # Ray passes a bucket on as its middle: between these bounds that is the whole number itself, so the sum is exact.
    buckets=tuple(0.5 + count for count in range(16)),
)
UNET_CALLS = _counter("unet_calls", "UNet evaluations, each branch of guidance one.", "phase")
FLOP = _counter("flop", "Floating-point operations of the networks.", "part")
SLOT_STEPS = _counter("slot_steps", "Slots of network calls. lane: invert, sketch, transfer.", "lane")
FILLED_SLOT_STEPS = _counter("filled_slot_steps", "Slots of network calls that an item was in.", "lane")
CACHE_HITS = _counter("cache_hits", "Results that were there already.", "cache")
CACHE_MISSES = _counter("cache_misses", "Results that had to be computed.", "cache")
SHARDS_WRITTEN = _counter("shards_written", "Shards of results, pairs or features that are stored.")
STORAGE_BYTES = _counter(
    "storage_bytes", "Bytes of objects read as a whole, and written. direction: read, written.", "direction"
)
STORAGE_RETRIES = _counter("storage_retries", "Accesses to storage that failed and were tried again.")
TRAIN_STEPS = _counter("train_steps", "Train steps, those that a loss took away included.")
TRAIN_SAMPLES = _counter("train_samples", "Samples in these steps.")
TRAIN_LOSS = _gauge("train_loss", "Mean loss of the last 100 steps.")
TRAIN_GRAD_NORM = _gauge("train_grad_norm", "Norm of the gradient in the last step.")
TRAIN_LEARNING_RATE = _gauge("train_learning_rate", "Learning rate of the last step.")
TRAIN_CHECKPOINT_STEP = _gauge("train_checkpoint_step", "Step of the newest checkpoint that is stored.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""Every metric that there is."""


class _Exporter:
    """What this process counts, on its way to Ray. Values wait here as long as this process has no Ray."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[_Key, float] = defaultdict(float)
        self._values: dict[_Key, float] = {}
        self._observations: dict[_Key, list[float]] = defaultdict(list)
        self._metrics: dict[str, Any] = {}
        self._is_broken = False

    def record(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        """Takes a value, and passes on what there is."""
        if self._is_broken:
            return
        key = (metric.name, labels)
        with self._lock:
            if metric.kind == "counter":
                self._sums[key] += value
            elif metric.kind == "gauge":
                self._values[key] = value
            else:
                self._observations[key].append(value)
            try:
                self._pass_on()
            except Exception:
                # No run fails for its metrics. Once is told, and nothing piles up.
                self._is_broken = True
                logger.exception("metrics cannot be exported any more")

    def _pass_on(self) -> None:
        ray = sys.modules.get("ray")  # a run with nothing to do never loads it
        if ray is None or not ray.is_initialized():
            return
        for waiting in (self._sums, self._values):
            for (name, labels), value in waiting.items():
                self._send(name, labels, value)
            waiting.clear()
        for (name, labels), values in self._observations.items():
            for value in values:
                self._send(name, labels, value)
        self._observations.clear()

    def _send(self, name: str, labels: tuple[str, ...], value: float) -> None:
        metric = self._metrics.get(name)
        if metric is None:
            metric = self._metrics[name] = _to_ray(_BY_NAME[name])
        # Not `inc`, which refuses 0: a counter that appears with 1 has no increase that Prometheus would see.
        metric._record(value, dict(zip(metric.info["tag_keys"], labels, strict=True)))


_GROUPS: Mapping[str, Metric] = {
    "seconds": WORKER_SECONDS,
    "unet_calls": UNET_CALLS,
    "flop": FLOP,
    "slot_steps": SLOT_STEPS,
    "filled": FILLED_SLOT_STEPS,
    "hits": CACHE_HITS,
    "misses": CACHE_MISSES,
    "storage_bytes": STORAGE_BYTES,
}
"""What workers count as GROUP.NAME (see `ezigen.engine.Counters`); the name is the metric's only label."""

_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}
_EXPORTER = _Exporter()


def _to_ray(metric: Metric) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    labels = (*_RUN_LABELS, *metric.labels)
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.meaning, boundaries=list(metric.buckets), tag_keys=labels)
    return (Counter if metric.kind == "counter" else Gauge)(metric.name, metric.meaning, labels)


class RunMetrics:
    """The metrics of one run.

    run: what people call it, the last part of its output, which is the same every night. run_id, model: what tells it
    from other runs of that name.
    """

    def __init__(self, flow: str, run: str, *, run_id: str, model: str = "") -> None:
        self._labels = (_printable(flow), _printable(run))
        self._info = {"run_id": run_id, "model": model.rstrip("/").rpartition("/")[2]}
        self._traffic = TRAFFIC.counts()

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Counts something, or with 0 says that it can be counted."""
        _EXPORTER.record(metric, self._all(metric, labels), amount)

    def set(self, metric: Metric, value: float | None, **labels: str) -> None:
        """What a gauge shows from now on; None changes nothing."""
        if value is not None:
            _EXPORTER.record(metric, self._all(metric, labels), value)

    def observe(self, metric: Metric, value: float) -> None:
        """One more value of a histogram."""
        _EXPORTER.record(metric, self._all(metric, {}), value)

    def add_counts(self, counts: Mapping[str, float]) -> None:
        """What a worker, or this process, has counted since the last time, by GROUP.NAME."""
        for name, amount in counts.items():
            group, _, part = name.partition(".")
            if group in _GROUPS:
                self.add(_GROUPS[group], amount, **{_GROUPS[group].labels[0]: part})
            elif name == "storage_retries":
                self.add(STORAGE_RETRIES, amount)

    def add_own_traffic(self) -> None:
        """What this process itself has read and written since the last time."""
        now = TRAFFIC.counts()
        self.add_counts(difference(now, self._traffic))
        self._traffic = now

    @contextlib.contextmanager
    def working(self, device: str) -> Iterator[None]:
        """The run is active until the block ends, which has to be while Ray is still there."""
        info = {**self._info, "device": device}
        for metric in (WORKER_STARTS, STORAGE_RETRIES):
            self.add(metric, 0)
        self.add(WORKER_SECONDS, 0, part="load")
        for reason in LOSS_REASONS:
            self.add(WORKER_LOSSES, 0, reason=reason)
        self.set(RUN_INFO, 1, **info)
        self.set(RUN_ACTIVE, 1)
        try:
            yield
        finally:
            self.add_own_traffic()
            self.set(RUN_INFO, 0, **info)
            self.set(RUN_ACTIVE, 0)
            for state in WORKER_STATES:
                self.set(WORKERS, 0, state=state)

    def _all(self, metric: Metric, labels: Mapping[str, str]) -> tuple[str, ...]:
        return (*self._labels, *(_printable(labels[name]) for name in metric.labels))


def _printable(value: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in value[:_MAX_LABEL_CHARS])
