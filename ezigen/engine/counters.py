"""What an engine counts, as numbers by name that can be added, subtracted, sent and stored."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

Counts = Mapping[str, float]
"""Numbers by name; see `Counters`."""


class Counters:
    """Counts since the engine was made.

    images · loops.N: images that needed N loops · slot_steps.LANE and filled.LANE: slots of the calls that were made,
    and those with a job in them · unet_calls.PHASE: UNet evaluations (each guidance branch and each encoded picture
    counting one) of encode, invert, sketch and transfer · flop.PART: floating-point operations, both without empty
    slots · hits.CACHE and misses.CACHE of text, subject, features, inversion, sketch, item · seconds.PART: where the
    engine's time went · halvings: times that the slots were halved because memory ran out · compiled_shapes: shapes of
    the UNet's calls that were compiled, in seconds.compile.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: float = 1) -> None:
        """Counts something."""
        self._counts[name] += amount  # type: ignore[assignment]

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time of the block to seconds.PART."""
        started = perf_counter()
        try:
            yield
        finally:
            self.add(f"seconds.{part}", perf_counter() - started)

    def __getitem__(self, name: str) -> float:
        return self._counts[name]

    def snapshot(self) -> dict[str, float]:
        """All counts as they are now."""
        return dict(self._counts)


def difference(now: Counts, before: Counts) -> dict[str, float]:
    """What was counted between two snapshots."""
    changes = {name: value - before.get(name, 0) for name, value in now.items()}
    return {name: value for name, value in changes.items() if value}


def occupancy(counts: Counts, lane: str | None = None) -> float | None:
    """Share of slots with a job in them, over all denoising calls or those of one lane; None without any."""
    lanes = [lane] if lane else ["invert", "sketch", "transfer"]
    slots = sum(counts.get(f"slot_steps.{name}", 0) for name in lanes)
    return sum(counts.get(f"filled.{name}", 0) for name in lanes) / slots if slots else None
