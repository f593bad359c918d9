"""The actor of a catalog run."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ezigen.config import ModelConfig, SamplerConfig
from tasks.actors.metrics import WorkerMetrics
from tasks.actors.records import LogBuffer, LogLine
from tasks.catalog.making import ImageGenerator, ImageMaker, ImageScorer, MakerSettings
from tasks.catalog.results import ResultRow
from tasks.catalog.rows import Item
from tasks.cluster.environment import SecretVariables

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is made from: small, without tensors, the same for all workers of a run."""

    model: ModelConfig
    sampler: SamplerConfig
    maker: MakerSettings
    num_threads: int
    secrets: SecretVariables


@dataclass(frozen=True)
class BatchReport:
    """A worker's answer to one batch: a row per item, and how the time since the last answer was spent.

    seconds: load (in the first report), idle, read, generate, score, store.
    """

    rows: tuple[ResultRow, ...]
    seconds: Mapping[str, float]
    log: tuple[LogLine, ...] = ()


class CatalogWorker:
    """Loads the networks once, then turns batches of items into stored images and rows."""

    def __init__(self, setup: WorkerSetup, name: str) -> None:
        self.setup = setup
        self.name = name

    def load(self) -> None:
        """Raises ConfigurationError if the model, the adapter or an encoder cannot be used."""
        started = time.perf_counter()
        self._log = LogBuffer()
        self._log.attach()
        self.setup.secrets.apply()
        self._metrics = WorkerMetrics()
        self._maker = ImageMaker(self.setup.maker, self.load_generator, self.load_scorer(), worker=self.name)
        self._ready_at = time.perf_counter()
        self._load_seconds = self._ready_at - started
        logger.info("loaded %s in %.1f s", self.setup.model.model, self._load_seconds)

    def run(self, items: Sequence[Item]) -> BatchReport:
        """A row for every item, whatever happened to it."""
        idle = time.perf_counter() - self._ready_at
        rows = self._maker.make(items)
        seconds = {"load": self._load_seconds, "idle": idle, **self._maker.take_seconds()}
        self._load_seconds = 0.0
        self._metrics.count(rows, seconds)
        self._ready_at = time.perf_counter()
        return BatchReport(tuple(rows), seconds, self._log.take())

    def load_generator(self, num_slots: int) -> ImageGenerator:
        """The networks that make images."""
        import torch

        from ezigen.sampling import load_generator
        from tasks.adapters.location import localize_model

        if not torch.cuda.is_available():
            torch.set_num_threads(self.setup.num_threads)
        model = localize_model(self.setup.model, self.setup.maker.locations)
        return load_generator(model, self.setup.sampler, num_slots=num_slots)

    def load_scorer(self) -> ImageScorer | None:
        """The networks that score images."""
        from ezigen.metrics import load_scorer

        return load_scorer(self.setup.model)
