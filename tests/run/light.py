"""A catalog worker whose networks are a few lines of arithmetic: everything around them is the real thing."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ezigen.config import ErrorCode, ItemError
from ezigen.engine import Counters, Ended
from ezigen.sampling import Request, Sample
from tasks.actors import CatalogWorker, ItemReport
from tasks.catalog.rows import Item
from tasks.cluster.worker import Withdrawn

SECONDS_PER_ITEM = float(os.environ.get("EZIGEN_TEST_SECONDS_PER_ITEM", "0.02"))


class LightEngine:
    """Draws noise that depends on the request alone, one image a step, and writes down every key that it worked on."""

    def __init__(self, diary: Path | None = None, seconds_per_item: float = SECONDS_PER_ITEM) -> None:
        self.counters = Counters()
        self.peak_flops = None
        self._diary = diary
        self._seconds = seconds_per_item
        self._requests: list[Request] = []

    @property
    def num_held(self) -> int:
        return len(self._requests)

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    def add(self, request: Request) -> None:
        self._requests.append(request)

    def withdraw(self, max_requests: int) -> list[str]:
        withdrawn = self._requests[1:][: -max_requests - 1 : -1]
        self._requests = [request for request in self._requests if request not in withdrawn]
        return [request.key for request in withdrawn]

    def drain(self, drains: bool = True) -> None:
        pass

    def step(self) -> list[Ended]:
        if not self._requests:
            return []
        request = self._requests.pop(0)
        try:
            sample = self._draw(request)
        except ItemError as error:
            return [Ended(request.key, error=error)]
        self.counters.add("images")
        self.counters.add("seconds.transfer", self._seconds)
        if self._diary is not None:
            with self._diary.open("a") as file:
                file.write(f"{os.getpid()} {request.key}\n")
        return [Ended(request.key, sample)]

    def _draw(self, request: Request) -> Sample:
        time.sleep(self._seconds)
        if "[odd]" in request.prompt:
            raise ItemError(ErrorCode.GENERATION_FAILED, "ArithmeticError: this prompt is odd")
        seed = hashlib.sha256(f"{request.prompt}/{request.seed}".encode()).digest()[:8]
        pixels = np.random.default_rng(int.from_bytes(seed, "big")).integers(0, 255, (32, 32, 3), np.uint8)
        subject = np.asarray(request.subjects[0].rgb.resize((32, 32)))
        image = Image.fromarray(((pixels.astype(int) + subject) // 2).astype(np.uint8))
        return Sample(
            key=request.key,
            image=image,
            sketch=image,
            loops=(image, image),
            num_loops=1,
            stop_reason="threshold",
            similarities=(0.995,),
            num_unet_calls=10,
            seconds=self._seconds,
        )


class LightWorker(CatalogWorker):
    seconds_per_item = SECONDS_PER_ITEM

    def load_engine(self) -> LightEngine:
        root = self.setup.maker.output.root
        diary = Path(root.path) / "diary" if root.scheme == "file" else None
        return LightEngine(diary, self.seconds_per_item)

    def load_scorer(self) -> None:
        return None


class SlowWorker(LightWorker):
    seconds_per_item = 0.5


class DoomedWorker(LightWorker):
    """Dies, as from a fault in native code, when it is given an item whose prompt says so."""

    def run(self, item: Item) -> ItemReport | Withdrawn:
        if "[kill]" in item.row.prompt:
            time.sleep(0.5)  # see tests.run.toys.act
            os.kill(os.getpid(), 9)
        return super().run(item)
