"""A catalog worker whose networks are a few lines of arithmetic: everything around them is the real thing."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ezigen.sampling import Request, Sample
from tasks.actors import BatchReport, CatalogWorker
from tasks.catalog.rows import Item

SECONDS_PER_ITEM = float(os.environ.get("EZIGEN_TEST_SECONDS_PER_ITEM", "0.02"))


class LightGenerator:
    """Draws noise that depends on the request alone, and writes down every key that it worked on."""

    def __init__(self, diary: Path | None) -> None:
        self._diary = diary

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        samples = [self._draw(request) for request in requests]
        if self._diary is not None:
            with self._diary.open("a") as file:
                file.writelines(f"{os.getpid()} {request.key}\n" for request in requests)
        return samples

    @staticmethod
    def _draw(request: Request) -> Sample:
        time.sleep(SECONDS_PER_ITEM)
        if "[odd]" in request.prompt:
            raise ArithmeticError("this prompt is odd")
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
            seconds=SECONDS_PER_ITEM,
        )


class LightWorker(CatalogWorker):
    def load_generator(self, num_slots: int) -> LightGenerator:  # noqa: ARG002
        root = self.setup.maker.output.root
        return LightGenerator(Path(root.path) / "diary" if root.scheme == "file" else None)

    def load_scorer(self) -> None:
        return None


class DoomedWorker(LightWorker):
    """Dies, as from a fault in native code, when it is given an item whose prompt says so."""

    def run(self, items: Sequence[Item]) -> BatchReport:
        if any("[kill]" in item.row.prompt for item in items):
            time.sleep(0.5)  # see tests.run.toys.act
            os.kill(os.getpid(), 9)
        return super().run(items)
