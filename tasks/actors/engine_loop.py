"""An engine on a thread of its own, fed by the threads that read and store."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ezigen.config import ItemError
from ezigen.images import Picture
from tasks.catalog.making import Made
from tasks.cluster.worker import WorkerBroken

if TYPE_CHECKING:
    from ezigen.engine import Ended
    from ezigen.sampling import Request, Sample

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
"""An idle loop looks this often whether it still has nothing to expect."""


class ImageEngine(Protocol):
    """The part of `ezigen.engine.Engine` that is needed here."""

    counters: Any

    @property
    def peak_flops(self) -> float | None:
        """What its device could compute per second; None where that is not known."""

    @property
    def num_held(self) -> int:
        """Requests that have not ended."""

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to tell."""

    def add(self, request: "Request") -> None:
        """Takes a request."""

    def withdraw(self, max_requests: int) -> list[str]:
        """Forgets requests that it has hardly begun; their keys."""

    def drain(self, drains: bool = True) -> None:
        """Whether few requests are to come."""

    def step(self) -> "list[Ended]":
        """One network call, and what it ended."""


class ImageScorer(Protocol):
    """The part of `ezigen.metrics.Scorer` that is needed here."""

    def score(self, image: Image.Image, prompt: str, subjects: Sequence[Picture]) -> dict[str, float]:
        """Scores by name."""


@dataclass(frozen=True, eq=False)
class _Order:
    """A request on its way. `full_size` are its subjects' pictures as they were read."""

    request: "Request"
    full_size: Sequence[Picture]
    answer: "Future[Made | None]"


class EngineLoop:
    """Steps an engine as long as it has something to do. Every method may be called from any thread.

    `start` makes the engine and the scorer, on the loop's thread, which is the only one that touches them. When the
    loop breaks, everything in it and everything that comes later ends with WorkerBroken.
    """

    def __init__(
        self,
        start: Callable[[], tuple[ImageEngine, ImageScorer | None]],
        *,
        capacity: int,
        is_expecting: Callable[[], bool] = lambda: False,
    ) -> None:
        """Returns when `start` has; raises what it raises.

        capacity: requests that are held when work abounds. is_expecting: whether a request is on its way here.
        """
        self._capacity = capacity
        self._is_expecting = is_expecting
        self._changed = threading.Condition()
        self._inbox: list[_Order] = []
        self._withdrawals: list[tuple[int, Future[int]]] = []
        self._orders: dict[str, _Order] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = {}
        self._peak_flops: float | None = None
        self._error: BaseException | None = None
        ready: Future[None] = Future()
        threading.Thread(target=self._run, args=(start, ready), name="engine", daemon=True).start()
        ready.result()

    def submit(self, request: "Request", full_size: Sequence[Picture]) -> "Future[Made | None]":
        """The image of a request, when it is there; None when it was withdrawn. ItemError is the request's own."""
        answer: Future[Made | None] = Future()
        with self._changed:
            if self._error is not None:
                raise WorkerBroken(str(self._error))
            self._inbox.append(_Order(request, full_size, answer))
            self._changed.notify()
        return answer

    def withdraw(self, max_requests: int) -> int:
        """Gives up to so many requests back; how many it were."""
        answer: Future[int] = Future()
        with self._changed:
            if self._error is not None:
                return 0
            self._withdrawals.append((max_requests, answer))
            self._changed.notify()
        return answer.result()

    def counts(self) -> dict[str, float]:
        """The engine's counts, and the loop's own seconds.score, seconds.waiting (for pictures) and seconds.idle.

        On a known GPU also possible_flop: what it could have computed while the engine was at work.
        """
        with self._changed:
            own = {f"seconds.{part}": value for part, value in self._seconds.items()}
            if self._peak_flops is not None:
                busy = sum(value for name, value in self._counts.items() if name.startswith("seconds."))
                own["possible_flop"] = self._peak_flops * busy
            return self._counts | own

    # ---- on the loop's thread

    def _run(self, start: Callable[[], tuple[ImageEngine, ImageScorer | None]], ready: "Future[None]") -> None:
        try:
            engine, scorer = start()
        except BaseException as error:  # noqa: BLE001 - it is raised where the loop was asked for
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            while True:
                self._wait_for_work(engine)
                self._take_in(engine)
                self._end(engine.step(), scorer)
                with self._changed:
                    self._counts = engine.counters.snapshot()
                    self._peak_flops = engine.peak_flops
        except BaseException as error:
            logger.exception("the engine broke")
            self._break(error)

    def _wait_for_work(self, engine: ImageEngine) -> None:
        with self._changed:
            while not (self._inbox or self._withdrawals or engine.busy):
                started = time.perf_counter()
                self._changed.wait(_LOOK_S)
                part = "waiting" if self._is_expecting() else "idle"
                self._seconds[part] += time.perf_counter() - started

    def _take_in(self, engine: ImageEngine) -> None:
        with self._changed:
            orders, self._inbox = self._inbox, []
            withdrawals, self._withdrawals = self._withdrawals, []
        for order in orders:
            self._orders[order.request.key] = order
            try:
                engine.add(order.request)
            except ItemError as error:
                self._orders.pop(order.request.key).answer.set_exception(error)
        for max_requests, answer in withdrawals:
            keys = engine.withdraw(max_requests)
            for key in keys:
                self._orders.pop(key).answer.set_result(None)
            answer.set_result(len(keys))
        engine.drain(engine.num_held < self._capacity)

    def _end(self, ended: "Sequence[Ended]", scorer: ImageScorer | None) -> None:
        for one in ended:
            order = self._orders.pop(one.key)
            if one.sample is None:
                assert one.error is not None
                order.answer.set_exception(one.error)
            else:
                order.answer.set_result(Made(one.sample, self._score(order, one.sample, scorer)))

    def _score(self, order: _Order, sample: "Sample", scorer: ImageScorer | None) -> dict[str, float]:
        if scorer is None:
            return {}
        from ezigen.models.faults import is_device_fault

        started = time.perf_counter()
        try:
            return scorer.score(_small(sample.image), order.request.prompt, order.full_size)
        except Exception as error:
            if is_device_fault(error):
                order.answer.set_exception(WorkerBroken(str(error)))
                raise
            logger.exception("the image of %r has no scores", order.request.key)
            return {}
        finally:
            self._seconds["score"] += time.perf_counter() - started

    def _break(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            orders = [*self._orders.values(), *self._inbox]
            withdrawals, self._withdrawals = self._withdrawals, []
        for order in orders:
            if not order.answer.done():
                order.answer.set_exception(WorkerBroken(f"the engine broke: {type(error).__name__}: {error}"))
        for _, answer in withdrawals:
            answer.set_result(0)


def _small(image: Image.Image, side_px: int = 2048) -> Image.Image:
    """The image, or one that scores as well: an edit has the size of its source, and pixels in floats are large."""
    if max(image.size) <= side_px:
        return image
    small = image.copy()
    small.thumbnail((side_px, side_px))
    return small
