"""What came of a run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ezigen.config import ErrorCode
from tasks.catalog.results import ResultRow
from tasks.storage import RunState

_IN_NETWORKS = ("text", "draw", "encode", "invert", "sketch", "transfer", "decode", "compile", "score")
_OUTSIDE = ("planning", "waiting")


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
    """Sums up what workers count (see `tasks.actors.ItemReport`)."""

    def __init__(self) -> None:
        self.num_unet_calls = 0
        self._counts: Counter[str] = Counter()
        self._num_images = 0

    def add(self, row: ResultRow, counts: Mapping[str, float]) -> None:
        """One item, and what its worker counted since the last one."""
        self._num_images += row.status == "done"
        self.num_unet_calls += row.num_unet_calls
        for name, value in counts.items():
            self._counts[name] += value  # type: ignore[assignment]

    def to_dict(self, wall_seconds: float, num_workers: int, device: str) -> dict[str, Any]:
        """For run.json and the report. Worker seconds are sums over all workers. The share outside the networks is that
        of an engine's time with work at hand; reading and storing pass beside it, on other threads.

        num_unet_calls: behind the images, as if each were made alone; unet_calls: those that were made.
        """
        seconds = self._group("seconds")
        inside = sum(seconds.get(part, 0.0) for part in _IN_NETWORKS)
        outside = sum(seconds.get(part, 0.0) for part in _OUTSIDE)
        filled, slots = self._group("filled"), self._group("slot_steps")
        hits, misses = self._group("hits"), self._group("misses")
        flop, possible = sum(self._group("flop").values()), self._counts["possible_flop"]
        return {
            "num_workers": num_workers,
            "device": device,
            "images": self._num_images,
            "images_per_s": round(self._num_images / wall_seconds, 4) if wall_seconds > 0 else 0.0,
            "num_unet_calls": self.num_unet_calls,
            "unet_calls": {phase: round(value) for phase, value in self._group("unet_calls").items()},
            "slot_occupancy": {lane: round(filled.get(lane, 0) / number, 4) for lane, number in slots.items()},
            "cache_hit_share": {
                name: round(hits.get(name, 0) / (hits.get(name, 0) + misses.get(name, 0)), 4)
                for name in sorted(hits.keys() | misses.keys())
            },
            "gflop_per_image": round(flop / self._num_images / 1e9, 1) if self._num_images else 0.0,
            # Of what a known GPU could have computed while its engine was at work.
            "flop_utilisation": round(flop / possible, 4) if possible else None,
            "slots_halved": round(self._counts["halvings"]),
            "compiled_shapes": round(self._counts["compiled_shapes"]),
            "worker_seconds": {part: round(value, 3) for part, value in seconds.items()},
            "share_outside_networks": round(outside / (inside + outside), 4) if inside + outside > 0 else 0.0,
        }

    def _group(self, group: str) -> dict[str, float]:
        """The counts GROUP.name by name."""
        prefix = f"{group}."
        return {name.removeprefix(prefix): n for name, n in sorted(self._counts.items()) if name.startswith(prefix)}
