"""An engine before which another model draws the scenes."""

import logging
import time
from dataclasses import replace

from PIL import Image

from ezigen.config import ErrorCode, ItemError
from ezigen.engine.ended import Ended
from ezigen.engine.engine import Engine, EngineFull
from ezigen.models.faults import is_device_fault, is_out_of_memory
from ezigen.sampling.request import Request
from ezigen.sampling.subjects import check_subjects
from ezigen.sketch.sketcher import Sketcher

logger = logging.getLogger(__name__)


class SketchingEngine:
    """Takes requests as an `Engine` does. Those that edit nothing wait until their scene is drawn, one at a time and
    only while the engine has free slots, and go on as edits of it. One thread at a time.

    An image depends on its request, the networks, the sampler and the number of slots alone, as before.
    """

    def __init__(self, engine: Engine, sketcher: Sketcher) -> None:
        self._engine = engine
        self._sketcher = sketcher
        self.counters = engine.counters
        """Those of the engine; also seconds.draw and drawn."""
        self._waiting: dict[str, Request] = {}
        self._drawn: dict[str, tuple[Image.Image | None, float]] = {}
        """By key the scene, if somebody wants to see it, and the seconds that it took."""

    @property
    def peak_flops(self) -> float | None:
        """As the engine's."""
        return self._engine.peak_flops

    @property
    def num_held(self) -> int:
        """Requests that have not ended."""
        return len(self._waiting) + self._engine.num_held

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to tell."""
        return bool(self._waiting) or self._engine.busy

    def add(self, request: Request) -> None:
        """Takes a request. Raises as `Engine.add` and `Sketcher.check` do."""
        if request.edit is not None and request.key not in self._waiting:
            self._engine.add(request)
            return
        if self.num_held >= self._engine.limits.max_held:
            raise EngineFull(f"{self.num_held} requests are here already")
        if request.key in self._waiting or request.key in self._drawn:
            raise ValueError(f"a request with key {request.key!r} is here already")
        if not request.subjects:
            message = f"{request.key}: a sketch needs at least one subject picture to go into it"
            raise ItemError(ErrorCode.ROW_INVALID, message)
        check_subjects(request)
        self._sketcher.check(request)
        self._waiting[request.key] = request

    def withdraw(self, max_requests: int) -> list[str]:
        """Forgets up to so many requests that were hardly begun, those without a scene first; returns their keys."""
        keys = list(self._waiting)[: -max_requests - 1 : -1]
        for key in keys:
            del self._waiting[key]
        more = self._engine.withdraw(max_requests - len(keys)) if len(keys) < max_requests else []
        for key in more:
            self._drawn.pop(key, None)
        return keys + more

    def drain(self, drains: bool = True) -> None:
        """As the engine's."""
        self._engine.drain(drains)

    def step(self) -> list[Ended]:
        """One scene or one network call, and the requests that it ended."""
        if self._waiting and self._engine.num_held < self._engine.num_slots:
            return self._draw_one()
        return [self._finish(ended) for ended in self._engine.step()]

    def _draw_one(self) -> list[Ended]:
        key = next(iter(self._waiting))
        request = self._waiting.pop(key)
        started = time.perf_counter()
        try:
            with self.counters.timed("draw"):
                edit = self._sketcher.to_edit(request)
            self._engine.add(edit)
        except ItemError as error:
            return [Ended(key, error=error)]
        except Exception as error:
            if is_device_fault(error):
                raise
            return [Ended(key, error=_to_item_error(key, error))]
        assert edit.edit is not None
        picture = edit.edit.source.rgb if request.preview else None
        self._drawn[key] = picture, time.perf_counter() - started
        self.counters.add("drawn")
        return []

    def _finish(self, ended: Ended) -> Ended:
        """The sample of a scene that was drawn here knows it, and what it cost."""
        picture, seconds = self._drawn.pop(ended.key, (None, 0.0))
        if ended.sample is None:
            return ended
        sample = ended.sample
        return replace(ended, sample=replace(sample, sketch=picture or sample.sketch, seconds=sample.seconds + seconds))


def _to_item_error(key: str, error: Exception) -> ItemError:
    if is_out_of_memory(error):
        message = f"{key}: no memory to draw its sketch; use fewer slots, a smaller sketch.draw_size_px or model"
        return ItemError(ErrorCode.OUT_OF_MEMORY, message)
    logger.exception("the sketch of %r could not be drawn", key)
    return ItemError(ErrorCode.GENERATION_FAILED, f"{key}: its sketch failed: {type(error).__name__}: {error}")
