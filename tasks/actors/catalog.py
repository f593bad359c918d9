"""The actor of a catalog run."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ezigen.config import ModelConfig, SamplerConfig
from ezigen.engine import difference
from tasks.actors.engine_loop import EngineLoop, ImageEngine, ImageScorer
from tasks.actors.records import LogBuffer, LogLine
from tasks.catalog.making import ImageMaker, MakerSettings
from tasks.catalog.results import ResultRow
from tasks.catalog.rows import Item
from tasks.catalog.stored_subjects import SubjectSource
from tasks.cluster.environment import SecretVariables
from tasks.cluster.worker import Withdrawn
from tasks.monitoring.logs import set_process_ids
from tasks.storage.filesystems import be_patient
from tasks.storage.traffic import TRAFFIC

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is made from: small, without tensors, the same for all workers of a run.

    num_slots: items that the engine works on at a time, or with fit_slots fewer, as the device's memory allows;
    num_ahead: items that are read meanwhile.
    """

    model: ModelConfig
    sampler: SamplerConfig
    maker: MakerSettings
    num_slots: int
    fit_slots: bool
    num_ahead: int
    compile_unet: bool
    num_threads: int
    secrets: SecretVariables
    subjects: SubjectSource | None = None

    @property
    def max_concurrency(self) -> int:
        """Threads of the actor: one per item that it holds, and one for whoever asks items back."""
        return self.num_slots + self.num_ahead + 1


@dataclass(frozen=True)
class ItemReport:
    """A worker's answer to one item, with what it counted (see `ezigen.engine.Counters`) and logged since the last.

    Beside the engine's counts: seconds.load, seconds.score, seconds.waiting (items are here, but their pictures are not
    read yet), seconds.idle (no items), and seconds.read and seconds.store, which pass beside the networks; what
    `tasks.storage.traffic` counts.
    """

    row: ResultRow
    counts: Mapping[str, float]
    log: tuple[LogLine, ...] = ()


class CatalogWorker:
    """Loads the networks once, then turns items into stored images and rows, many at a time."""

    def __init__(self, setup: WorkerSetup, name: str) -> None:
        self.setup = setup
        self.name = name

    def load(self) -> None:
        """Raises ConfigurationError if the model, the adapter or an encoder cannot be used."""
        started = time.perf_counter()
        be_patient()
        self._log = LogBuffer(self.name)
        set_process_ids(run_id=self.setup.maker.run_id)
        self._log.attach()
        self.setup.secrets.apply()
        self._reporting = threading.Lock()
        self._reported: Mapping[str, float] = {}
        self._num_running = 0
        self._loop = EngineLoop(
            self._start_engine,
            capacity=self.setup.num_slots + self.setup.num_ahead,
            is_expecting=lambda: self._num_running > 0,
        )
        stored = None if self.setup.subjects is None else self.setup.subjects.open()
        self._maker = ImageMaker(self.setup.maker, self._loop.submit, worker=self.name, stored=stored)
        self._load_seconds = time.perf_counter() - started
        logger.info("loaded %s in %.1f s", self.setup.model.model, self._load_seconds)

    def run(self, item: Item) -> ItemReport | Withdrawn:
        """The item's row, whatever happened to it. Called by several threads."""
        with self._reporting:
            self._num_running += 1
        try:
            row = self._maker.make(item)
        finally:
            with self._reporting:
                self._num_running -= 1
        return Withdrawn() if row is None else self._report(row)

    def withdraw(self, max_items: int) -> int:
        """Gives up to so many items back that were hardly begun."""
        return self._loop.withdraw(max_items)

    def _report(self, row: ResultRow) -> ItemReport:
        with self._reporting:
            seconds = {"seconds.load": self._load_seconds}
            now = {**seconds, **self._loop.counts(), **self._maker.counts(), **TRAFFIC.counts()}
            counts, self._reported = difference(now, self._reported), now
            return ItemReport(row, counts, self._log.take())

    def _start_engine(self) -> tuple[ImageEngine, ImageScorer | None]:
        """Runs on the engine's thread."""
        return self.load_engine(), self.load_scorer()

    def load_engine(self) -> ImageEngine:
        """The networks that make images."""
        import torch

        from ezigen.engine import EngineLimits, load_engine
        from tasks.adapters.location import localize_model

        setup = self.setup
        if not torch.cuda.is_available():
            torch.set_num_threads(setup.num_threads)  # of this thread, the engine's: each has a number of its own
        model = localize_model(setup.model, setup.maker.locations)
        limits = EngineLimits(
            num_slots=setup.num_slots,
            max_held=4 * (setup.num_slots + setup.num_ahead),
            compiler="inductor" if setup.compile_unet else None,
        )
        if model.sketch.draws:
            from ezigen.sketch import load_sketching_engine

            return load_sketching_engine(model, setup.sampler, limits, fit_slots=setup.fit_slots)
        return load_engine(model, setup.sampler, limits, fit_slots=setup.fit_slots)

    def load_scorer(self) -> ImageScorer | None:
        """The networks that score images."""
        from ezigen.metrics import load_scorer

        return load_scorer(self.setup.model)
