"""Which item goes to which worker, and what a worker's end means: decisions alone, without Ray and without a clock.

A pool asks `plan_starts`, `plan_assignments`, `plan_withdrawals`, `plan_retirements` and `plan_kills` what to do, and
reports what happened. Every item that was read ends exactly once: with a result (`item_done`), as a `Condemned`, or
not at all when the run stops.

Who is to blame when a worker dies. It works on many items at a time and reads others ahead, so everything that it held
is under suspicion. Suspects run alone, on a worker that holds nothing else: only what happens there proves anything. An
item whose second death happens there is condemned. The loss of a whole node, a preemption or a broken connection blames
nobody.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from ezigen.config import ErrorCode
from tasks.cluster.waiting import Ticket, WaitingItems

__all__ = ["Assignment", "Condemned", "ItemPlanner", "Loss", "PoolFailed", "PoolLimits", "Ticket"]

ItemT = TypeVar("ItemT")

_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0


class PoolFailed(RuntimeError):  # noqa: N818
    """No worker can be kept alive; the run cannot go on. The message carries the last reason that was seen."""


class Loss(StrEnum):
    """Why a worker is gone."""

    DIED = "died"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    NOBODYS_FAULT = "nobodys_fault"


@dataclass(frozen=True)
class PoolLimits:
    """The bounds of a pool. Times are in seconds."""

    num_workers: int
    num_slots: int
    """Items that a worker works on at a time."""
    num_ahead: int
    """Items that a worker holds beyond these: read, and ready to enter a slot."""
    item_timeout_s: float
    start_timeout_s: float
    grace_period_s: float = 25.0
    max_deaths: int = 2
    max_losses: int = 3
    """Nobody's-fault losses after which an item is suspected all the same: it may be what takes the node down."""
    max_failed_starts: int = 3
    retire_after_s: float = 10.0
    """How long a worker may hold its GPU when nothing is left for it."""
    read_ahead: int = 1024
    """Items that wait in the planner, where those that share work find each other."""

    @property
    def max_deaths_in_a_row(self) -> int:
        """Deaths without a single finished item in between, after which the pool gives up.

        More than the items of one worker: rows of one bad picture stand together, and each may have to be condemned.
        """
        return 10 + 4 * self.num_workers + self.num_slots + self.num_ahead


@dataclass(frozen=True, eq=False)
class Assignment(Generic[ItemT]):
    """Give this item to this worker. An exclusive item is a suspect, on a worker that holds nothing else."""

    worker: int
    ticket: Ticket[ItemT]
    exclusive: bool = False


@dataclass(frozen=True, eq=False)
class Condemned(Generic[ItemT]):
    """An item that ends without a result, and why."""

    ticket: Ticket[ItemT]
    code: ErrorCode
    message: str


@dataclass(eq=False)
class _Worker(Generic[ItemT]):
    started_at: float
    num_slots: int
    ready: bool = False
    exclusive: bool = False
    held: dict[Ticket[ItemT], None] = field(default_factory=dict)
    """In the order in which they were sent."""
    quiet_since: float = 0.0
    num_asked_back: int = 0
    """Items of a withdrawal that are not yet back, or about which it has not yet answered."""
    all_begun: bool = False
    """It could not give back what it was asked for; true until its next result."""

    @property
    def num_excess(self) -> int:
        return max(0, len(self.held) - self.num_slots)


class ItemPlanner(Generic[ItemT]):
    """The state of one pool. Reads `items` lazily, a bounded number ahead; all times come from the caller.

    Items of equal `affinity` share work and go to one worker as far as possible; None shares with nobody.
    """

    def __init__(
        self,
        items: Iterable[ItemT],
        limits: PoolLimits,
        affinity: Callable[[ItemT], Hashable | None] | None = None,
    ) -> None:
        self.limits = limits
        self.num_slots = limits.num_slots
        """Slots of workers that start now: halved when the memory of a machine did not suffice, for the whole run."""
        self._waiting = WaitingItems(items, limits.read_ahead, affinity)
        self._suspects: deque[Ticket[ItemT]] = deque()
        self._workers: dict[int, _Worker[ItemT]] = {}
        self._num_held = 0
        self._stopping = False
        self._num_started = 0
        self._ever_ready = False
        self._failed_starts = 0
        self._deaths_in_a_row = 0
        self._start_after = -math.inf

    # ---- what is there

    @property
    def finished(self) -> bool:
        """Nothing runs, and nothing is left that may be started."""
        return not self._num_held and self._waiting.exhausted and not self.num_waiting

    @property
    def num_in_flight(self) -> int:
        """Items that workers hold now."""
        return self._num_held

    @property
    def num_waiting(self) -> int:
        """Items that were read and that no worker holds yet."""
        return len(self._waiting) + len(self._suspects)

    @property
    def num_ready(self) -> int:
        """Workers that have loaded their model."""
        return sum(worker.ready for worker in self._workers.values())

    @property
    def num_busy(self) -> int:
        """Workers that hold an item."""
        return sum(bool(worker.held) for worker in self._workers.values())

    def held(self, worker: int) -> tuple[Ticket[ItemT], ...]:
        """What a worker holds, in the order in which it was sent."""
        return tuple(self._workers[worker].held)

    # ---- what to do

    def plan_starts(self, now: float) -> list[int]:
        """Numbers of workers to start: as many as there is work for, and none while a back-off lasts."""
        self._waiting.read()
        if self._stopping or now < self._start_after:
            return []
        workers = self._workers.values()
        num_wanted = self.num_waiting + sum(worker.num_excess for worker in workers)
        num_idle = sum(not worker.held for worker in workers)
        num_missing = min(self.limits.num_workers - len(workers), num_wanted - num_idle)
        return [self._start(now) for _ in range(num_missing)]

    def plan_assignments(self, now: float) -> list[Assignment[ItemT]]:
        """Items to send out now: suspects to idle workers, others to the least full. The caller has to send each."""
        self._waiting.read()
        return [*self._assign_suspects(now), *self._assign_waiting(now)]

    def plan_withdrawals(self) -> list[tuple[int, int]]:
        """(worker, count): items to take back, as others have free slots for them, or as the run is being stopped.

        The caller reports `withdrawal_done` for each, and `item_withdrawn` for each item that is given back.
        """
        num_wanted = self._num_wanted_back()
        planned: list[tuple[int, int]] = []
        for number in self._givers() if num_wanted > 0 else ():
            giver = self._workers[number]
            giver.num_asked_back = min(giver.num_excess, num_wanted)
            planned.append((number, giver.num_asked_back))
            num_wanted -= giver.num_asked_back
            if not num_wanted:
                break
        return planned

    def plan_retirements(self, now: float) -> list[int]:
        """Workers for which nothing is left, for a while now: loading or idle, while others finish what they hold.

        Their GPUs are free for other runs, and nodes that an autoscaler added for them can go. Should a mate die after
        that, a new worker starts for what it held. The caller ends them and reports `worker_retired`.
        """
        if self.num_waiting or not self._waiting.exhausted or any(w.num_excess for w in self._workers.values()):
            return []
        since = now - self.limits.retire_after_s
        return [
            number
            for number, worker in self._workers.items()
            if not worker.held and not worker.num_asked_back and max(worker.started_at, worker.quiet_since) < since
        ]

    def plan_kills(self, now: float) -> list[int]:
        """Workers that are over their time. The caller ends them and reports `worker_lost(TIMED_OUT)`."""
        return [number for number, worker in self._workers.items() if now > self._deadline(worker)]

    def stop(self) -> None:
        """Take in nothing more and start nothing more. What is in the workers' slots may end."""
        self._stopping = True
        self._waiting.clear()
        self._suspects.clear()

    # ---- what happened

    def worker_ready(self, number: int) -> None:
        """A worker has loaded its model."""
        self._workers[number].ready = True
        self._ever_ready = True
        self._failed_starts = 0

    def worker_retired(self, number: int) -> None:
        """A worker for which nothing was left has been ended."""
        del self._workers[number]

    def worker_refused(self, number: int, message: str, now: float) -> None:
        """A worker says that it can never start: wrong everywhere, unless others of its kind did start."""
        if not self._ever_ready:
            raise PoolFailed(message)
        del self._workers[number]
        self._count_failed_start(message, now)

    def item_done(self, number: int, ticket: Ticket[ItemT], now: float) -> None:
        """An item came back with its result."""
        self._take_answer(number, ticket, now)
        self._deaths_in_a_row = 0

    def item_failed(self, number: int, ticket: Ticket[ItemT], message: str, now: float) -> list[Condemned[ItemT]]:
        """A worker survived, but its answer to this item is an exception."""
        if self._take_answer(number, ticket, now):
            return [Condemned(ticket, ErrorCode.GENERATION_FAILED, message)]
        self._suspect(ticket)
        return []

    def item_withdrawn(self, number: int, ticket: Ticket[ItemT]) -> None:
        """A worker gave this item back without having begun it."""
        worker = self._workers[number]
        exclusive = self._release(worker, ticket)
        worker.num_asked_back = max(0, worker.num_asked_back - 1)
        ticket.attempts -= 1
        self._requeue(ticket, exclusive=exclusive)

    def withdrawal_done(self, number: int, num_asked: int, num_given: int) -> None:
        """A worker says how many items it gives back; those may have come before this, or follow."""
        worker = self._workers[number]
        worker.num_asked_back -= num_asked - num_given
        worker.all_begun = num_given < num_asked

    def worker_lost(self, number: int, loss: Loss, message: str, now: float) -> list[Condemned[ItemT]]:
        """A worker is gone, with everything that it held. Raises PoolFailed when they all die."""
        worker = self._workers.pop(number)
        self._waiting.leave(number)
        self._num_held -= len(worker.held)
        if not worker.ready:
            self._count_lost_start(loss, message, now)
            return []
        if loss is Loss.OUT_OF_MEMORY and len(worker.held) > 1:
            self.num_slots = min(self.num_slots, max(1, worker.num_slots // 2))
        condemned = self._judge(worker, loss, message)
        if loss is not Loss.NOBODYS_FAULT:
            self._count_death(message, now)
        return condemned

    # ---- assignment

    def _assign_suspects(self, now: float) -> list[Assignment[ItemT]]:
        idle = [number for number, worker in self._workers.items() if worker.ready and not worker.held]
        pairs = zip(idle, list(self._suspects), strict=False)
        return [self._assign(number, self._suspects.popleft(), now, exclusive=True) for number, _ in pairs]

    def _assign_waiting(self, now: float) -> list[Assignment[ItemT]]:
        planned: list[Assignment[ItemT]] = []
        open_workers = self._open_workers() if self._waiting else []
        while open_workers and self._waiting:
            _, number = heapq.heappop(open_workers)
            worker = self._workers[number]
            if len(worker.held) >= self._depth(worker):  # it has got as much, or the intake has come to its end
                continue
            planned.append(self._assign(number, self._waiting.draw(number), now))
            heapq.heappush(open_workers, (_fullness(worker), number))
            self._waiting.read()
        return planned

    def _open_workers(self) -> list[tuple[float, int]]:
        """Workers that may get more, as a heap: the least full one is first."""
        held_back = self._held_back()
        found = [
            (_fullness(worker), number)
            for number, worker in self._workers.items()
            if worker.ready and not worker.exclusive and number not in held_back
            if len(worker.held) < self._depth(worker)
        ]
        heapq.heapify(found)
        return found

    def _held_back(self) -> set[int]:
        """Workers that get nothing until they are empty, for the suspects: the least full ones, a quarter at most."""
        if not self._suspects:
            return set()
        ready = {number: worker for number, worker in self._workers.items() if worker.ready}
        shared = sorted((len(worker.held), number) for number, worker in ready.items() if not worker.exclusive)
        num_exclusive = len(ready) - len(shared)
        num_more = min(len(self._suspects), max(1, len(ready) // 4) - num_exclusive)
        return {number for _, number in shared[: max(0, num_more)]}

    def _depth(self, worker: _Worker[ItemT]) -> int:
        """How many items a worker may hold: slots and what is ahead, but the last items are spread evenly."""
        full = worker.num_slots + self.limits.num_ahead
        if not self._waiting.exhausted:
            return full
        return min(full, math.ceil((self._num_held + self.num_waiting) / len(self._workers)))

    def _num_wanted_back(self) -> int:
        if self.num_waiting:
            return 0
        workers = self._workers.values()
        if self._stopping:
            return sum(worker.num_excess for worker in workers)
        return sum(self._num_free(worker) - worker.num_asked_back for worker in workers)

    def _num_free(self, worker: _Worker[ItemT]) -> int:
        """Slots that an item taken back from another worker could enter."""
        if not worker.ready or worker.exclusive:
            return 0
        return max(0, min(worker.num_slots, self._depth(worker)) - len(worker.held))

    def _assign(self, number: int, ticket: Ticket[ItemT], now: float, *, exclusive: bool = False) -> Assignment[ItemT]:
        worker = self._workers[number]
        if not worker.held:
            worker.quiet_since = now
        worker.held[ticket] = None
        worker.exclusive = exclusive
        self._num_held += 1
        ticket.attempts += 1
        if exclusive:
            self._waiting.leave(number)
        return Assignment(number, ticket, exclusive)

    def _givers(self) -> list[int]:
        """Workers that may be asked to give items back, those that hold the most ahead first."""
        givers = [
            (-worker.num_excess, number)
            for number, worker in self._workers.items()
            if worker.num_excess and not worker.num_asked_back and not worker.all_begun
        ]
        return [number for _, number in sorted(givers)]

    def _take_answer(self, number: int, ticket: Ticket[ItemT], now: float) -> bool:
        """Whether the item had its worker to itself."""
        worker = self._workers[number]
        worker.quiet_since = now
        worker.all_begun = False
        return self._release(worker, ticket)

    def _release(self, worker: _Worker[ItemT], ticket: Ticket[ItemT]) -> bool:
        """Whether the item had its worker to itself."""
        del worker.held[ticket]
        self._num_held -= 1
        was_exclusive, worker.exclusive = worker.exclusive, False
        return was_exclusive

    def _deadline(self, worker: _Worker[ItemT]) -> float:
        if not worker.ready:
            return worker.started_at + self.limits.start_timeout_s
        if not worker.held:
            return math.inf
        return worker.quiet_since + self.limits.item_timeout_s * min(len(worker.held), worker.num_slots)

    # ---- blame

    def _judge(self, worker: _Worker[ItemT], loss: Loss, message: str) -> list[Condemned[ItemT]]:
        """What becomes of the items that a lost worker held."""
        if self._stopping and loss is not Loss.TIMED_OUT:
            return []  # whatever ends the run may well end its workers first
        tickets = list(worker.held)
        if loss is Loss.NOBODYS_FAULT:
            tickets = self._excuse(tickets, exclusive=worker.exclusive)
        if loss is not Loss.TIMED_OUT:
            for ticket in tickets:
                ticket.deaths += 1
        proven = worker.exclusive and (loss is Loss.TIMED_OUT or self._has_died_enough(tickets))
        if proven:
            return [Condemned(ticket, _code(loss), message) for ticket in tickets]
        for ticket in tickets:
            self._suspect(ticket)
        return []

    def _excuse(self, tickets: list[Ticket[ItemT]], *, exclusive: bool) -> list[Ticket[ItemT]]:
        """Puts back what was lost by nobody's fault; returns what this has happened to too often."""
        for ticket in tickets:
            ticket.losses += 1
        unlucky = [ticket for ticket in tickets if ticket.losses > self.limits.max_losses]
        for ticket in reversed(tickets):
            if ticket.losses <= self.limits.max_losses:
                self._requeue(ticket, exclusive=exclusive)
        return unlucky

    def _has_died_enough(self, tickets: list[Ticket[ItemT]]) -> bool:
        return all(ticket.deaths >= self.limits.max_deaths for ticket in tickets)

    def _suspect(self, ticket: Ticket[ItemT]) -> None:
        if not self._stopping:
            self._suspects.append(ticket)

    def _requeue(self, ticket: Ticket[ItemT], *, exclusive: bool) -> None:
        if self._stopping:
            return
        if exclusive:
            self._suspects.appendleft(ticket)
        else:
            self._waiting.put_back(ticket)

    # ---- starting again

    def _start(self, now: float) -> int:
        self._num_started += 1
        self._workers[self._num_started] = _Worker(started_at=now, num_slots=self.num_slots)
        return self._num_started

    def _count_lost_start(self, loss: Loss, message: str, now: float) -> None:
        if loss is Loss.TIMED_OUT and not self._ever_ready:
            raise PoolFailed(message)
        if loss is Loss.NOBODYS_FAULT:
            self._back_off(1, now)
        else:
            self._count_failed_start(message, now)

    def _count_failed_start(self, message: str, now: float) -> None:
        self._failed_starts += 1
        self._back_off(self._failed_starts, now)
        if self._failed_starts >= self.limits.max_failed_starts and not self._workers:
            raise PoolFailed(f"no worker could start, {self._failed_starts} tries in a row; the last one: {message}")

    def _count_death(self, message: str, now: float) -> None:
        if self._stopping:
            return
        self._deaths_in_a_row += 1
        self._back_off(self._deaths_in_a_row - 1, now)
        if self._deaths_in_a_row >= self.limits.max_deaths_in_a_row:
            raise PoolFailed(
                f"{self._deaths_in_a_row} workers died in a row without finishing an item; the last one: {message}"
            )

    def _back_off(self, num_failures: int, now: float) -> None:
        """The first replacement starts at once; each further failure in a row doubles the wait."""
        if num_failures > 0:
            self._start_after = now + min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (num_failures - 1))


def _fullness(worker: _Worker[ItemT]) -> float:
    return len(worker.held) / worker.num_slots


def _code(loss: Loss) -> ErrorCode:
    codes = {Loss.TIMED_OUT: ErrorCode.TIMED_OUT, Loss.OUT_OF_MEMORY: ErrorCode.OUT_OF_MEMORY}
    return codes.get(loss, ErrorCode.WORKER_DIED)
