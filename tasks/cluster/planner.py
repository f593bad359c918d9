"""Which batch goes to which worker, and what a worker's end means: decisions alone, without Ray and without a clock.

A pool asks `plan_starts`, `plan_batches` and `plan_kills` what to do, and reports what happened. Every item that was
read ends exactly once: with a result of its batch (`batch_done`), as a `Condemned`, or not at all when the run stops.

Who is to blame when a worker dies. The batch that was *running* is under suspicion, never the one that waited behind
it. Suspects run alone, one item to a batch, on a worker that holds nothing else: a process that dies right after
a batch may take that batch's answer with it, so only such an exclusive batch proves anything. An item whose second
death happens there is condemned. The loss of a whole node, a preemption or a broken connection blames nobody.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Generic, TypeVar

from ezigen.config import ErrorCode

ItemT = TypeVar("ItemT")

_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0
_CALM_BATCHES = 16
"""Batches without memory trouble after which a reduced batch size is doubled again."""


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
    """The bounds of a pool. Times are in seconds; `batch_size` counts items."""

    num_workers: int
    batch_size: int
    item_timeout_s: float
    start_timeout_s: float
    grace_period_s: float = 25.0
    max_queued: int = 2
    """Batches that a worker holds: one that runs, and the next ones."""
    max_deaths: int = 2
    max_losses: int = 3
    """Nobody's-fault losses after which an item is suspected all the same: it may be what takes the node down."""
    max_failed_starts: int = 3

    @property
    def max_deaths_in_a_row(self) -> int:
        """Deaths without a single finished batch in between, after which the pool gives up."""
        return 10 + 4 * self.num_workers


@dataclass(eq=False)
class Ticket(Generic[ItemT]):
    """One item on its way, and what has happened to it."""

    item: ItemT
    attempts: int = 0
    deaths: int = 0
    losses: int = 0


@dataclass(frozen=True, eq=False)
class Batch(Generic[ItemT]):
    """Items that run together. An exclusive batch is a single suspect on a worker of its own."""

    number: int
    tickets: tuple[Ticket[ItemT], ...]
    exclusive: bool = False


@dataclass(frozen=True, eq=False)
class Assignment(Generic[ItemT]):
    """Give this batch to this worker."""

    worker: int
    batch: Batch[ItemT]


@dataclass(frozen=True, eq=False)
class Condemned(Generic[ItemT]):
    """An item that ends without a result, and why."""

    ticket: Ticket[ItemT]
    code: ErrorCode
    message: str


@dataclass(eq=False)
class _Worker(Generic[ItemT]):
    started_at: float
    ready: bool = False
    head_since: float = 0.0
    queue: deque[Batch[ItemT]] = field(default_factory=deque)


class BatchPlanner(Generic[ItemT]):
    """The state of one pool. Reads `items` lazily, a bounded number ahead; all times come from the caller."""

    def __init__(self, items: Iterable[ItemT], limits: PoolLimits) -> None:
        self.limits = limits
        self._intake = iter(items)
        self._exhausted = False
        self._stopping = False
        self._ahead: deque[Ticket[ItemT]] = deque()
        self._returned: deque[tuple[Ticket[ItemT], ...]] = deque()
        self._suspects: deque[Ticket[ItemT]] = deque()
        self._workers: dict[int, _Worker[ItemT]] = {}
        self._batch_size = limits.batch_size
        self._tail_size = limits.batch_size
        self._calm_batches = 0
        self._num_batches = 0
        self._num_started = 0
        self._ever_ready = False
        self._failed_starts = 0
        self._deaths_in_a_row = 0
        self._start_after = -math.inf

    # ---- what is there

    @property
    def finished(self) -> bool:
        """Nothing runs, and nothing is left that may be started."""
        if any(worker.queue for worker in self._workers.values()):
            return False
        return self._stopping or (self._exhausted and not (self._ahead or self._returned or self._suspects))

    @property
    def num_in_flight(self) -> int:
        """Items that workers hold now."""
        return sum(len(batch.tickets) for worker in self._workers.values() for batch in worker.queue)

    @property
    def num_ready(self) -> int:
        """Workers that have loaded their model."""
        return sum(worker.ready for worker in self._workers.values())

    @property
    def num_busy(self) -> int:
        """Workers that hold a batch."""
        return sum(bool(worker.queue) for worker in self._workers.values())

    def running(self, worker: int) -> Batch[ItemT] | None:
        """The batch that a worker is at."""
        queue = self._workers[worker].queue
        return queue[0] if queue else None

    # ---- what to do

    def plan_starts(self, now: float) -> list[int]:
        """Numbers of workers to start: as many as there is work for, and none while a back-off lasts."""
        self._read_ahead()
        if self._stopping or now < self._start_after:
            return []
        held = sum(len(worker.queue) for worker in self._workers.values())
        missing = min(self.limits.num_workers, held + self._num_waiting()) - len(self._workers)
        return [self._start(now) for _ in range(missing)]

    def plan_batches(self, now: float) -> list[Assignment[ItemT]]:
        """Batches to send out now. The caller has to send each of them."""
        self._read_ahead()
        planned: list[Assignment[ItemT]] = []
        while not self._stopping and (number := self._least_busy()) is not None:
            batch = self._next_batch(idle=not self._workers[number].queue)
            if batch is None:
                break
            self._enqueue(number, batch, now)
            planned.append(Assignment(number, batch))
        return planned

    def plan_kills(self, now: float) -> list[int]:
        """Workers that are over their time. The caller ends them and reports `worker_lost(TIMED_OUT)`."""
        return [number for number, worker in self._workers.items() if now > self._deadline(worker)]

    def stop(self) -> None:
        """Take in nothing more and start nothing more. What workers hold may end."""
        self._stopping = True
        for waiting in (self._ahead, self._returned, self._suspects):
            waiting.clear()

    # ---- what happened

    def worker_ready(self, number: int) -> None:
        """A worker has loaded its model."""
        self._workers[number].ready = True
        self._ever_ready = True
        self._failed_starts = 0

    def worker_refused(self, number: int, message: str, now: float) -> None:
        """A worker says that it can never start: wrong everywhere, unless others of its kind did start."""
        if not self._ever_ready:
            raise PoolFailed(message)
        del self._workers[number]
        self._count_failed_start(message, now)

    def batch_done(self, number: int, batch: Batch[ItemT], now: float) -> None:
        """A batch came back with its results."""
        self._remove(number, batch, now)
        self._deaths_in_a_row = 0
        self._calm_batches += len(batch.tickets) >= self._batch_size
        if self._batch_size < self.limits.batch_size and self._calm_batches >= _CALM_BATCHES:
            self._set_batch_size(min(self.limits.batch_size, self._batch_size * 2))

    def batch_failed(self, number: int, batch: Batch[ItemT], message: str, now: float) -> list[Condemned[ItemT]]:
        """A worker survived, but its answer to this batch is an exception."""
        self._remove(number, batch, now)
        if len(batch.tickets) > 1:
            return self._suspect(batch)
        return [Condemned(batch.tickets[0], ErrorCode.GENERATION_FAILED, message)]

    def batch_too_large(self, number: int, batch: Batch[ItemT], message: str, now: float) -> list[Condemned[ItemT]]:
        """A worker survived, but this batch did not fit into its memory."""
        self._remove(number, batch, now)
        if len(batch.tickets) > 1:
            return self._halve(batch)
        return [Condemned(batch.tickets[0], ErrorCode.OUT_OF_MEMORY, message)]

    def worker_lost(self, number: int, loss: Loss, message: str, now: float) -> list[Condemned[ItemT]]:
        """A worker is gone, with everything that it held. Raises PoolFailed when they all die."""
        worker = self._workers.pop(number)
        if not worker.ready:
            self._count_lost_start(loss, message, now)
            return []
        for batch in reversed(list(islice(worker.queue, 1, None))):
            self._requeue(batch)
        condemned = self._judge(worker.queue[0], loss, message) if worker.queue else []
        if loss is not Loss.NOBODYS_FAULT:
            self._count_death(message, now)
        return condemned

    # ---- intake

    def _read_ahead(self) -> None:
        room = self.limits.num_workers * self.limits.max_queued * self.limits.batch_size - len(self._ahead)
        if room <= 0 or self._exhausted or self._stopping:
            return
        fresh = list(islice(self._intake, room))
        self._ahead.extend(Ticket(item) for item in fresh)
        if len(fresh) < room:
            self._exhausted = True
            self._tail_size = self._even_size()

    def _even_size(self) -> int:
        """The batch size that spreads the last items over all workers instead of filling a few."""
        workers, size = self.limits.num_workers, self.limits.batch_size
        rounds = max(1, math.ceil(len(self._ahead) / (workers * size)))
        return max(1, math.ceil(len(self._ahead) / (workers * rounds)))

    def _fresh_size(self) -> int:
        return min(self._batch_size, self._tail_size)

    def _num_waiting(self) -> int:
        """Batches that no worker holds yet."""
        return len(self._returned) + len(self._suspects) + math.ceil(len(self._ahead) / self._fresh_size())

    # ---- assignment

    def _least_busy(self) -> int | None:
        depth = 1 if self._is_tail() else self.limits.max_queued
        open_workers = [
            (len(worker.queue), number)
            for number, worker in self._workers.items()
            if worker.ready and len(worker.queue) < depth and not any(batch.exclusive for batch in worker.queue)
        ]
        return min(open_workers)[1] if open_workers else None

    def _is_tail(self) -> bool:
        """Batches wait for a free worker, not behind another one: at the end, and while suspects need idle workers."""
        return bool(self._suspects) or (self._exhausted and self._num_waiting() <= self.limits.num_workers)

    def _next_batch(self, *, idle: bool) -> Batch[ItemT] | None:
        if idle and self._suspects:
            return self._to_batch((self._suspects.popleft(),), exclusive=True)
        if self._returned:
            return self._to_batch(self._returned.popleft())
        if self._ahead:
            size = min(self._fresh_size(), len(self._ahead))
            return self._to_batch(tuple(self._ahead.popleft() for _ in range(size)))
        return None

    def _to_batch(self, tickets: tuple[Ticket[ItemT], ...], *, exclusive: bool = False) -> Batch[ItemT]:
        self._num_batches += 1
        return Batch(self._num_batches, tickets, exclusive)

    def _enqueue(self, number: int, batch: Batch[ItemT], now: float) -> None:
        worker = self._workers[number]
        worker.queue.append(batch)
        if len(worker.queue) == 1:
            self._begin(worker, now)

    def _remove(self, number: int, batch: Batch[ItemT], now: float) -> None:
        worker = self._workers[number]
        was_running = worker.queue[0] is batch
        worker.queue.remove(batch)
        if was_running and worker.queue:
            self._begin(worker, now)

    @staticmethod
    def _begin(worker: _Worker[ItemT], now: float) -> None:
        worker.head_since = now
        for ticket in worker.queue[0].tickets:
            ticket.attempts += 1

    def _deadline(self, worker: _Worker[ItemT]) -> float:
        if not worker.ready:
            return worker.started_at + self.limits.start_timeout_s
        if not worker.queue:
            return math.inf
        return worker.head_since + self.limits.item_timeout_s * len(worker.queue[0].tickets)

    # ---- blame

    def _judge(self, batch: Batch[ItemT], loss: Loss, message: str) -> list[Condemned[ItemT]]:
        """What becomes of the batch that was running when its worker was lost."""
        if self._stopping and loss is not Loss.TIMED_OUT:
            return []  # whatever ends the run may well end its workers first
        if loss is Loss.NOBODYS_FAULT and not self._is_unlucky_too_often(batch):
            self._requeue(batch)
            return []
        if loss is Loss.TIMED_OUT:
            return self._condemn_if(len(batch.tickets) == 1, batch, ErrorCode.TIMED_OUT, message)
        for ticket in batch.tickets:
            ticket.deaths += 1
        if loss is not Loss.OUT_OF_MEMORY:
            proven = batch.exclusive and self._has_died_enough(batch)
            return self._condemn_if(proven, batch, ErrorCode.WORKER_DIED, message)
        if len(batch.tickets) > 1:
            return self._halve(batch)
        return self._condemn_if(self._has_died_enough(batch), batch, ErrorCode.OUT_OF_MEMORY, message)

    def _condemn_if(self, proven: bool, batch: Batch[ItemT], code: ErrorCode, message: str) -> list[Condemned[ItemT]]:
        return [Condemned(batch.tickets[0], code, message)] if proven else self._suspect(batch)

    def _has_died_enough(self, batch: Batch[ItemT]) -> bool:
        return batch.tickets[0].deaths >= self.limits.max_deaths

    def _is_unlucky_too_often(self, batch: Batch[ItemT]) -> bool:
        for ticket in batch.tickets:
            ticket.losses += 1
        return max(ticket.losses for ticket in batch.tickets) > self.limits.max_losses

    def _suspect(self, batch: Batch[ItemT]) -> list[Condemned[ItemT]]:
        if not self._stopping:
            self._suspects.extend(batch.tickets)
        return []

    def _halve(self, batch: Batch[ItemT]) -> list[Condemned[ItemT]]:
        half = math.ceil(len(batch.tickets) / 2)
        self._set_batch_size(min(self._batch_size, half))
        if not self._stopping:
            self._returned.extend((batch.tickets[:half], batch.tickets[half:]))
        return []

    def _set_batch_size(self, size: int) -> None:
        self._batch_size = size
        self._calm_batches = 0

    def _requeue(self, batch: Batch[ItemT]) -> None:
        if self._stopping:
            return
        if batch.exclusive:
            self._suspects.extendleft(batch.tickets)
        else:
            self._returned.appendleft(batch.tickets)

    # ---- starting again

    def _start(self, now: float) -> int:
        self._num_started += 1
        self._workers[self._num_started] = _Worker(started_at=now)
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
                f"{self._deaths_in_a_row} workers died in a row without finishing a batch; the last one: {message}"
            )

    def _back_off(self, num_failures: int, now: float) -> None:
        """The first replacement starts at once; each further failure in a row doubles the wait."""
        if num_failures > 0:
            self._start_after = now + min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (num_failures - 1))
