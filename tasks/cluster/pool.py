"""A bounded pool of Ray actors: carries out what the planner decides, and tells it what happened."""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from ezigen.config import ConfigurationError
from tasks.cluster.connection import ClusterLost
from tasks.cluster.planner import Condemned, ItemPlanner, Loss, PoolFailed, PoolLimits, Ticket
from tasks.cluster.worker import Withdrawn, WorkerBroken

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_TICK_S = 0.2
_STOP_SIGNAL_S = 0.5
"""A signal that ends the run may reach the workers before it is seen here."""


@dataclass(frozen=True)
class Finished(Generic[ItemT, ResultT]):
    """An item that came back, with what the worker returned for it."""

    worker: str
    ticket: Ticket[ItemT]
    result: ResultT


@dataclass(frozen=True)
class Tick:
    """Nothing happened for a moment: time to flush and to report."""


@dataclass(frozen=True, eq=False)
class _Call(Generic[ItemT]):
    """A pending answer: to `run` of an item, to `withdraw` of a number of items, otherwise to `load`."""

    worker: int
    ticket: Ticket[ItemT] | None = None
    num_asked: int = 0


@dataclass(frozen=True, eq=False)
class _Answer:
    """What came: a value, or the exception of a method (RayTaskError), or the loss of the worker."""

    ref: Any
    value: Any = None
    error: Exception | None = None

    @property
    def ends_worker(self) -> bool:
        if not isinstance(self.error, RayTaskError):
            return self.error is not None
        return isinstance(_cause(self.error), WorkerBroken)


@dataclass(frozen=True)
class _Home:
    """Where an actor lives."""

    node_id: str
    pid: int


class ActorPool(Generic[ItemT, ResultT]):
    """Runs items through actors that `spawn` makes, each with the verbs of `tasks.cluster.worker.Worker`.

    `spawn(name, num_slots)` returns a new actor handle, with as many threads as the Worker protocol asks for; the pool
    alone ends actors. Items of equal `affinity` go to one worker as far as possible. `check` is called between events
    and may raise ClusterLost. Setting `stop` ends the intake; what runs may finish within `limits.grace_period_s`.
    """

    def __init__(
        self,
        spawn: Callable[[str, int], Any],
        items: Iterable[ItemT],
        limits: PoolLimits,
        *,
        affinity: Callable[[ItemT], Hashable | None] | None = None,
        stop: threading.Event | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.planner: ItemPlanner[ItemT] = ItemPlanner(items, limits, affinity)
        self._spawn = spawn
        self._limits = limits
        self._stop = stop or threading.Event()
        self._check = check
        self._actors: dict[int, Any] = {}
        self._homes: dict[int, _Home] = {}
        self._calls: dict[Any, _Call[ItemT]] = {}
        self._refusal: ConfigurationError | None = None
        self._stop_deadline: float | None = None
        self.num_lost = 0
        """Workers that ended in the middle of something, and may have left something behind."""
        self.losses: Counter[str] = Counter()
        """Workers that were lost, by `Loss`."""
        self.num_requeued = 0
        """Items that were given to another worker, or wait for one, because theirs was lost."""

    def run(self) -> Generator[Finished[ItemT, ResultT] | Condemned[ItemT] | Tick]:
        """Everything that ends, as it ends; a Tick at least every 0.2 s. Every actor is gone when this is over.

        Raises ConfigurationError (a worker's own) or PoolFailed when no worker can be kept alive, ClusterLost when Ray
        itself has gone; neither while the run is being stopped.
        """
        try:
            while not (self.planner.finished or self._is_late()):
                self._check()
                self._send_out()
                yield from self._collect(_TICK_S)
                yield from self._end_overdue()
                self._retire()
                self._obey_stop()
                yield Tick()
        except PoolFailed as error:
            if self._refusal is not None:
                raise self._refusal from error
            raise
        except ClusterLost:
            if not self._is_stopping():
                raise
            logger.warning("Ray ended before the work in flight did")
        finally:
            self._end_all()

    # ---- stopping

    def _obey_stop(self) -> None:
        if self._stop.is_set() and self._stop_deadline is None:
            self._stop_deadline = time.monotonic() + self._limits.grace_period_s
            self.planner.stop()

    def _is_late(self) -> bool:
        if self._stop_deadline is None or time.monotonic() < self._stop_deadline:
            return False
        logger.warning("ending %d items that did not finish in time", self.planner.num_in_flight)
        return True

    def _is_stopping(self) -> bool:
        return self._stop.wait(_STOP_SIGNAL_S)

    # ---- sending

    def _send_out(self) -> None:
        now = time.monotonic()
        for worker in self.planner.plan_starts(now):
            actor = self._actors[worker] = self._spawn(_name(worker), self.planner.num_slots)
            self._calls[actor.__ray_call__.remote(_load)] = _Call(worker)
        for assignment in self.planner.plan_assignments(now):
            worker, ticket = assignment.worker, assignment.ticket
            self._calls[self._actors[worker].run.remote(ticket.item)] = _Call(worker, ticket)
        for worker, count in self.planner.plan_withdrawals():
            self._calls[self._actors[worker].withdraw.remote(count)] = _Call(worker, num_asked=count)

    # ---- receiving

    def _collect(self, timeout_s: float) -> Iterator[Finished[ItemT, ResultT] | Condemned[ItemT]]:
        """Takes every answer that is there, and only then the ends of workers: what is answered is not suspected."""
        answers = [_answer(ref) for ref in self._wait(timeout_s)]
        for answer in sorted(answers, key=lambda answer: answer.ends_worker):
            call = self._calls.pop(answer.ref, None)
            if call is None:  # its worker was lost a moment ago
                continue
            if answer.error is None:
                yield from self._receive(call, answer.value)
            else:
                yield from self._receive_error(call, answer.error)

    def _wait(self, timeout_s: float) -> list[Any]:
        refs = list(self._calls)
        if not refs:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return ready

    def _receive(self, call: _Call[ItemT], value: Any) -> Iterator[Finished[ItemT, ResultT]]:
        if call.num_asked:
            self.planner.withdrawal_done(call.worker, call.num_asked, value)
        elif call.ticket is None:
            self._homes[call.worker] = value
            self.planner.worker_ready(call.worker)
            logger.info("%s is ready (process %d)", _name(call.worker), value.pid)
        elif isinstance(value, Withdrawn):
            self.planner.item_withdrawn(call.worker, call.ticket)
        else:
            self.planner.item_done(call.worker, call.ticket, time.monotonic())
            yield Finished(_name(call.worker), call.ticket, value)

    def _receive_error(self, call: _Call[ItemT], error: Exception) -> Sequence[Condemned[ItemT]]:
        now = time.monotonic()
        if isinstance(error, RayTaskError):
            return self._receive_exception(call, _cause(error), now)
        return self._lose(call.worker, self._classify(call.worker, error), _describe_loss(error))

    def _receive_exception(self, call: _Call[ItemT], cause: BaseException, now: float) -> Sequence[Condemned[ItemT]]:
        message = f"{type(cause).__name__}: {_first_lines(cause)}"
        if isinstance(cause, WorkerBroken):
            return self._lose(call.worker, Loss.DIED, str(cause))
        if call.ticket is not None:
            logger.warning("%s failed on an item: %s", _name(call.worker), message)
            return self.planner.item_failed(call.worker, call.ticket, message, now)
        if call.num_asked:
            logger.warning("%s gives nothing back: %s", _name(call.worker), message)
            self.planner.withdrawal_done(call.worker, call.num_asked, 0)
            return ()
        if isinstance(cause, ConfigurationError):
            self._refuse(call.worker, cause, now)
            return ()
        return self._lose(call.worker, Loss.DIED, message)

    def _refuse(self, worker: int, cause: ConfigurationError, now: float) -> None:
        self._refusal = ConfigurationError(str(cause))
        self._forget(worker)
        self.planner.worker_refused(worker, str(cause), now)
        self._refusal = None

    def _retire(self) -> None:
        for worker in self.planner.plan_retirements(time.monotonic()):
            logger.info("%s is ended: nothing is left for it", _name(worker))
            self._forget(worker)
            self.planner.worker_retired(worker)

    # ---- losing

    def _end_overdue(self) -> Iterator[Condemned[ItemT]]:
        for worker in self.planner.plan_kills(time.monotonic()):
            if worker in self._homes:
                message = f"took longer than {self._limits.item_timeout_s:g} s (cluster.item_timeout_s)"
            else:
                message = f"did not start within {self._limits.start_timeout_s:g} s (cluster.start_timeout_s)"
            yield from self._lose(worker, Loss.TIMED_OUT, message)

    def _lose(self, worker: int, loss: Loss, message: str) -> Sequence[Condemned[ItemT]]:
        if loss is not Loss.TIMED_OUT and self._is_stopping():
            loss = Loss.NOBODYS_FAULT
        self.num_lost += 1
        num_held, num_slots = len(self.planner.held(worker)), self.planner.num_slots
        logger.warning("%s is lost (%s) with %d items: %s", _name(worker), loss, num_held, message)
        self._forget(worker)
        condemned = self.planner.worker_lost(worker, loss, message, time.monotonic())
        self.losses[loss.value] += 1
        self.num_requeued += 0 if self._stop.is_set() else num_held - len(condemned)
        if self.planner.num_slots < num_slots:
            logger.warning("memory did not suffice: new workers work on %d items at a time", self.planner.num_slots)
        return condemned

    def _forget(self, worker: int) -> None:
        for ref in [ref for ref, call in self._calls.items() if call.worker == worker]:
            del self._calls[ref]
        self._homes.pop(worker, None)
        ray.kill(self._actors.pop(worker))

    def _classify(self, worker: int, error: Exception) -> Loss:
        if isinstance(error, OutOfMemoryError):
            return Loss.OUT_OF_MEMORY
        if isinstance(error, ActorUnschedulableError | RuntimeEnvSetupError):
            return Loss.DIED
        if not isinstance(error, ActorDiedError) or error.preempted:
            return Loss.NOBODYS_FAULT
        home = self._homes.get(worker)
        return Loss.NOBODYS_FAULT if home and not _node_is_alive(home.node_id) else Loss.DIED

    def _end_all(self) -> None:
        self._calls.clear()
        self.num_lost += self.planner.num_busy
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()


def _name(worker: int) -> str:
    return f"worker-{worker}"


def _answer(ref: Any) -> _Answer:
    try:
        return _Answer(ref, ray.get(ref))
    except (RayError, RayTaskError) as error:
        return _Answer(ref, error=error)


def _load(worker: Any) -> _Home:
    """Runs inside the actor."""
    import os

    worker.load()
    return _Home(ray.get_runtime_context().get_node_id(), os.getpid())


def _node_is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def _cause(error: RayTaskError) -> BaseException:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _first_lines(error: BaseException, max_chars: int = 500) -> str:
    text = str(error).strip()
    return text if len(text) <= max_chars else text[:max_chars] + " ..."


def _describe_loss(error: Exception) -> str:
    """One line of Ray's several paragraphs."""
    if isinstance(error, OutOfMemoryError):
        return "killed because its machine ran out of memory"
    text = str(error)
    found = re.search(r"(?:The actor is dead because|Worker exit detail:) ([^\n.]*)", text)
    exit_type = re.search(r"Worker exit type: (\w+)", text)
    if exit_type:
        return f"its process ended ({exit_type[1]})"
    return found[1] if found else text.strip().splitlines()[0][:200]
