"""Which call of a network comes next, and who takes part in it: decisions alone, without torch and without a clock.

Jobs of one *lane* can share a call, because they need the same network at the same shapes. A lane has a fixed number of
slots; a job holds one from its first step in the lane to its last, and another job takes the slot at the very next
call. Calls always have all slots of their lane, filled or not, so that a result's bits do not depend on who else is
there; what counts is how many are filled.

A job waits in a lane at no cost to anybody. That is why calls can be full: the planner runs a lane when its slots can
all be filled, and lets the others wait until theirs can. With L lanes in use and more than L (slots - 1) jobs among
them, one of them can always be filled.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, TypeVar

JobT = TypeVar("JobT")

PATIENCE = 200
"""Calls of other lanes after which a lane with work has its turn, full or not."""


class Kind(IntEnum):
    """What a call does, in the order of an image's way; a decoded job may go back to TRANSFER for another loop."""

    ENCODE = 0
    """Subject pictures to keys and values, source pictures to latents."""
    INVERT = 1
    """A step of a source picture towards noise."""
    SKETCH = 2
    """A denoising step with idle adapters."""
    TRANSFER = 3
    """A denoising step with the subject."""
    DECODE = 4
    """Latents to pictures, and what is measured on them."""

    @property
    def denoises(self) -> bool:
        """Whether it is a step in the denoising slots."""
        return self in (Kind.INVERT, Kind.SKETCH, Kind.TRANSFER)


@dataclass(frozen=True)
class Lane:
    """What jobs need to have in common to share a call. shape: whatever else the network's shapes depend on."""

    kind: Kind
    guided: bool = False
    """With both guidance branches: two evaluations per slot and step."""
    shape: Hashable = None
    latent_size: tuple[int, int] | None = None
    """Height and width of an edit's latents; None for the model's own size."""

    @property
    def edits(self) -> bool:
        """Whether its jobs belong to edits, which have a guidance of their own."""
        return self.latent_size is not None


@dataclass(frozen=True)
class Leg:
    """Consecutive steps of a job in one lane."""

    lane: Lane
    num_steps: int = 1


@dataclass(frozen=True, eq=False)
class Call(Generic[JobT]):
    """One call: by slot the job in it, or None; and the slots whose jobs are new in them."""

    lane: Lane
    slots: tuple[JobT | None, ...]
    entering: tuple[int, ...] = ()

    @property
    def jobs(self) -> list[JobT]:
        """The jobs in it, in the order of their slots."""
        return [job for job in self.slots if job is not None]


@dataclass(eq=False)
class _Place(Generic[JobT]):
    """A job on its way: the legs that are left, and the steps that are left of the first of them."""

    job: JobT
    legs: deque[Leg]
    urgency: float
    number: int
    steps_left: int = 0
    slot: int | None = None

    @property
    def lane(self) -> Lane:
        return self.legs[0].lane


@dataclass(eq=False)
class _Queue(Generic[JobT]):
    """A lane's slots, and who waits for one."""

    slots: list[_Place[JobT] | None]
    waiting: list[_Place[JobT]] = field(default_factory=list)
    passed_over: int = 0

    @property
    def num_jobs(self) -> int:
        return len(self.waiting) + sum(place is not None for place in self.slots)

    @property
    def can_be_full(self) -> bool:
        return self.num_jobs >= len(self.slots)


class StepPlanner(Generic[JobT]):
    """The jobs of one engine. Jobs are told apart by identity or equality, and must be hashable."""

    def __init__(self, num_slots: Callable[[Lane], int], patience: int = PATIENCE) -> None:
        """num_slots says how many slots a lane has, when its first job arrives; see `resize`."""
        self._num_slots = num_slots
        self._patience = patience
        self._queues: dict[Lane, _Queue[JobT]] = {}
        self._places: dict[JobT, _Place[JobT]] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, job: JobT) -> bool:
        return job in self._places

    @property
    def lanes(self) -> list[Lane]:
        """The lanes that somebody is in or waits for."""
        return list(self._queues)

    # ---- coming and going

    def add(self, job: JobT, legs: Sequence[Leg], urgency: float = 0.0) -> None:
        """A job that has to go through these legs, one after the other.

        In a lane the more urgent job goes first, then the one that was added first. Raises ValueError for a job that is
        here already, and for legs without steps.
        """
        if job in self._places:
            raise ValueError(f"{job!r} is in the planner already")
        if not legs or any(leg.num_steps < 1 for leg in legs):
            raise ValueError("a job needs at least one leg, and a leg at least one step")
        self._num_added += 1
        place = _Place(job, deque(legs), urgency, self._num_added)
        self._places[job] = place
        self._wait(place)

    def remove(self, job: JobT) -> None:
        """Forgets a job wherever it is; its slot is free at the next call. Raises KeyError for an unknown one."""
        place = self._places.pop(job)
        queue = self._queues[place.lane]
        if place.slot is None:
            queue.waiting.remove(place)
        else:
            queue.slots[place.slot] = None
        self._forget_if_empty(place.lane)

    def resize(self) -> list[JobT]:
        """Asks for the number of slots of every lane again; jobs without a slot any more wait, first in their line.

        Returns every job that held a slot: all of them enter anew.
        """
        held = []
        for lane, queue in self._queues.items():
            inside = [place for place in queue.slots if place is not None]
            for place in inside:
                place.slot = None
            held += [place.job for place in inside]
            queue.waiting = inside + queue.waiting
            queue.slots = [None] * self._num_slots(lane)
        return held

    # ---- one call

    def plan(self) -> Call[JobT] | None:
        """The next call, or None when no job is here. It has to be carried out and reported with `done`."""
        lane = self._choose()
        if lane is None:
            return None
        for other, queue in self._queues.items():
            queue.passed_over = 0 if other == lane else queue.passed_over + 1
        queue = self._queues[lane]
        entering = tuple(self._fill(queue))
        return Call(lane, tuple(None if place is None else place.job for place in queue.slots), entering)

    def done(self, call: Call[JobT]) -> list[JobT]:
        """The call was carried out: each of its jobs is a step further. Returns those that have no leg left.

        They are no longer in the planner and may be added again.
        """
        ended = []
        for job in call.jobs:
            place = self._places.get(job)
            if place is None:  # removed while the call went on
                continue
            place.steps_left -= 1
            if place.steps_left == 0 and self._leave(place):
                ended.append(job)
        self._forget_if_empty(call.lane)
        return ended

    # ---- inside

    def _choose(self) -> Lane | None:
        """A lane that waited too long; else, of the lanes that can be filled, the one nearest to the image; else the
        one that brings others nearer to being filled.
        """
        if not self._queues:
            return None
        neglected = max(self._queues, key=lambda lane: self._queues[lane].passed_over)
        if self._queues[neglected].passed_over >= self._patience:
            return neglected
        full = [lane for lane, queue in self._queues.items() if queue.can_be_full]
        if full:
            return max(full, key=lambda lane: (lane.kind, self._queues[lane].passed_over))
        return min(self._queues, key=self._feeding_order)

    def _feeding_order(self, lane: Lane) -> tuple[bool, int, float, int]:
        """Of lanes that nobody can fill: first those whose jobs then go to TRANSFER, where most of the work is."""
        queue = self._queues[lane]
        share = queue.num_jobs / len(queue.slots)
        return lane.kind is Kind.TRANSFER, lane.kind, -share, -queue.passed_over

    def _fill(self, queue: _Queue[JobT]) -> Iterator[int]:
        for slot, place in enumerate(queue.slots):
            if place is not None or not queue.waiting:
                continue
            first = min(queue.waiting, key=lambda waiting: (-waiting.urgency, waiting.number))
            queue.waiting.remove(first)
            queue.slots[slot] = first
            first.slot = slot
            yield slot

    def _leave(self, place: _Place[JobT]) -> bool:
        """Gives up the slot; the job waits in its next lane. True when there is none."""
        assert place.slot is not None
        queue = self._queues[place.lane]
        queue.slots[place.slot] = None
        place.slot = None
        place.legs.popleft()
        if place.legs:
            self._wait(place)
            return False
        del self._places[place.job]
        return True

    def _wait(self, place: _Place[JobT]) -> None:
        place.steps_left = place.legs[0].num_steps
        lane = place.lane
        if lane not in self._queues:
            self._queues[lane] = _Queue([None] * self._num_slots(lane))
        self._queues[lane].waiting.append(place)

    def _forget_if_empty(self, lane: Lane) -> None:
        queue = self._queues.get(lane)
        if queue is not None and queue.num_jobs == 0:
            del self._queues[lane]
