"""Memory of a run's processes over time: sampled once a second, its slope, and a plot."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil

PERIOD_S = 1.0
STEADY = (0.2, 0.95)
"""The part of the items that slopes are of: before it caches fill, after it workers end."""
MIB = 2**20

_NAMES = (("gcs_server", "Ray's GCS"), ("raylet", "Ray's raylet"), ("prefect server", "Prefect's server"))


@dataclass(frozen=True)
class Sample:
    """A moment: seconds since the start, items that have ended, RSS in MiB by process."""

    seconds: float
    finished: int
    rss_mib: Mapping[str, float]


@dataclass
class MemorySampler:
    """Samples a process and its descendants while the `with` block lasts. `finished` says how many items have ended."""

    pid: int
    finished: Callable[[], int]
    samples: list[Sample] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    """CPU seconds by process, as of its last sample."""

    def __enter__(self) -> Self:
        self._names: dict[int, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample_all)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _sample_all(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(PERIOD_S):
            seconds = round(time.monotonic() - started, 1)
            with contextlib.suppress(psutil.NoSuchProcess):
                driver = psutil.Process(self.pid)
                self._sample(seconds, [driver, *driver.children(recursive=True)])

    def _sample(self, seconds: float, processes: Sequence[psutil.Process]) -> None:
        rss_mib: dict[str, float] = {}
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                name = self._name(process)
                rss_mib[name] = rss_mib.get(name, 0.0) + process.memory_info().rss / MIB
                spent = process.cpu_times()
                self.cpu_s[name] = max(self.cpu_s.get(name, 0.0), spent.user + spent.system)
        self.samples.append(Sample(seconds, self.finished(), {name: round(mib, 2) for name, mib in rss_mib.items()}))

    def _name(self, process: psutil.Process) -> str:
        if process.pid == self.pid:
            return "driver"
        if process.pid in self._names:
            return self._names[process.pid]
        command = " ".join(process.cmdline())
        if command.startswith("ray::SimulatedWorker"):
            known = sum(name.startswith("worker") for name in self._names.values())
            self._names[process.pid] = f"worker {known + 1}"
            return self._names[process.pid]
        return next((name for part, name in _NAMES if part in command), "Ray's other processes")


def slopes(samples: Sequence[Sample]) -> dict[str, float]:
    """MiB per 10,000 items, by process: least squares over the samples of the steady part."""
    total = max((sample.finished for sample in samples), default=0)
    steady = [sample for sample in samples if STEADY[0] * total <= sample.finished <= STEADY[1] * total]
    found: dict[str, float] = {}
    for name in sorted({name for sample in steady for name in sample.rss_mib}):
        points = [(sample.finished, sample.rss_mib[name]) for sample in steady if name in sample.rss_mib]
        if len({finished for finished, _ in points}) > 2:
            x, y = np.array(points, np.float64).T
            found[name] = float(np.polyfit(x / 10_000, y, 1)[0])
    return found


def peaks(samples: Sequence[Sample]) -> dict[str, float]:
    """The most MiB, by process."""
    names = {name for sample in samples for name in sample.rss_mib}
    return {name: max(sample.rss_mib.get(name, 0.0) for sample in samples) for name in sorted(names)}


def to_plain(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """For the saved figures."""
    return [asdict(sample) for sample in samples]
