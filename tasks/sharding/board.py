"""What the workers of a run tell each other and the driver while they work: who makes what, and whether to stop."""

from collections import Counter
from dataclasses import dataclass

MAX_DEATHS = 3
"""A shard that takes its worker along so often, or a worker that dies so often while it starts, is given up."""


@dataclass(frozen=True)
class BoardState:
    """A moment of the run, as far as the workers have reported."""

    num_ready: int
    running: tuple[str, ...]
    num_deaths: int
    begun: frozenset[str] | None = None
    """Every shard that was ever begun; told once no more will be."""


class Board:
    """One small actor per run. A worker is known by its actor's id, which stays when Ray restarts it."""

    def __init__(self) -> None:
        self._ready: set[str] = set()
        self._opening: set[str] = set()
        self._running: dict[str, str] = {}
        self._deaths: Counter[str] = Counter()
        self._deaths_at_start: Counter[str] = Counter()
        self._begun: set[str] = set()
        self._stopping = False

    def worker_opens(self, worker: str) -> bool:
        """A process begins to load what it needs; what its predecessor held took it along. False: it should give up."""
        self._ready.discard(worker)
        shard = self._running.pop(worker, None)
        if shard is not None:
            self._deaths[shard] += 1
        if worker in self._opening:
            self._deaths_at_start[worker] += 1
        self._opening.add(worker)
        return self._deaths_at_start[worker] < MAX_DEATHS

    def worker_ready(self, worker: str) -> None:
        """It has loaded what it needs."""
        self._opening.discard(worker)
        self._deaths_at_start.pop(worker, None)
        self._ready.add(worker)

    def begin(self, worker: str, shard: str) -> str:
        """What the worker is to do with a shard: "make" it, "skip" it (the run stops), or "condemn" it."""
        if self._stopping:
            return "skip"
        if self._deaths[shard] >= MAX_DEATHS:
            return "condemn"
        self._running[worker] = shard
        self._begun.add(shard)
        return "make"

    def end(self, worker: str) -> None:
        """The worker has ended its shard, one way or the other."""
        self._running.pop(worker, None)

    def stop(self) -> None:
        """From now on no shard is begun."""
        self._stopping = True

    def state(self) -> BoardState:
        """For the driver."""
        begun = frozenset(self._begun) if self._stopping else None
        return BoardState(len(self._ready), tuple(self._running.values()), self._deaths.total(), begun)
