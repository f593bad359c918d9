"""What came of a run."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ezigen.config import ErrorCode
from tasks.catalog.results import ResultRow
from tasks.storage import RunState

_IN_NETWORKS = ("generate", "score")
_OUTSIDE = ("read", "store")


class TooManyFailures(RuntimeError):  # noqa: N818
    """More items failed than `inputs.max_failed_share` allows. Everything else is finished and stored."""

    def __init__(self, message: str, outcome: "RunOutcome") -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True)
class RunOutcome:
    """The end of a run, in numbers. `total` counts the items of this run; `refused` ones are among `failed`."""

    run_id: str
    state: RunState
    total: int
    done: int = 0
    failed: int = 0
    refused: int = 0
    failed_by_code: Mapping[ErrorCode, int] = field(default_factory=dict)
    seconds: float = 0.0
    num_unet_calls: int = 0
    measurements: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.state == "stopped"

    @property
    def nothing_to_do(self) -> bool:
        """Whether every row had its result already."""
        return self.total == 0

    @property
    def seconds_per_image(self) -> float | None:
        """Wall time of the whole run per image that was made; None without any."""
        return self.seconds / self.done if self.done else None

    @property
    def failed_share(self) -> float:
        """Share of the ended items that failed."""
        ended = self.done + self.failed
        return self.failed / ended if ended else 0.0


class Measurements:
    """Sums up what workers report about their time."""

    def __init__(self) -> None:
        self.num_unet_calls = 0
        self._seconds: dict[str, float] = defaultdict(float)
        self._images_by_worker: Counter[str] = Counter()

    def add(self, worker: str, rows: tuple[ResultRow, ...], seconds: Mapping[str, float]) -> None:
        """One batch."""
        self._images_by_worker[worker] += sum(row.status == "done" for row in rows)
        self.num_unet_calls += sum(row.num_unet_calls for row in rows)
        for part, value in seconds.items():
            self._seconds[part] += value

    def to_dict(self, wall_seconds: float, num_workers: int, device: str) -> dict[str, Any]:
        """For run.json and the report. Worker seconds are sums over all workers; the share outside the networks leaves
        out loading and idling.
        """
        inside = sum(self._seconds.get(part, 0.0) for part in _IN_NETWORKS)
        outside = sum(self._seconds.get(part, 0.0) for part in _OUTSIDE)
        images = sum(self._images_by_worker.values())
        return {
            "num_workers": num_workers,
            "device": device,
            "images": images,
            "images_per_s": round(images / wall_seconds, 4) if wall_seconds > 0 else 0.0,
            "num_unet_calls": self.num_unet_calls,
            "worker_seconds": {part: round(value, 3) for part, value in sorted(self._seconds.items())},
            "share_outside_networks": round(outside / (inside + outside), 4) if inside + outside > 0 else 0.0,
        }
