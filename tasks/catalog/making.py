"""One batch of items from pictures to stored images and result rows. What goes wrong with one item stays with it."""

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from ezigen.config import ErrorCode, ItemError
from ezigen.images import Picture, decode_picture, encode_png, thumbnail_strip
from ezigen.models.faults import is_device_fault, is_out_of_memory
from tasks.catalog.results import ResultRow, failed_row
from tasks.catalog.rows import Item
from tasks.cluster.worker import BatchTooLarge, WorkerBroken
from tasks.storage import Locations, RunOutput

if TYPE_CHECKING:
    from ezigen.sampling import Request, Sample

logger = logging.getLogger(__name__)

_NUM_TRANSFERS = 8
"""Pictures read, or images written, at the same time."""


class ImageGenerator(Protocol):
    """The part of `ezigen.sampling.Generator` that is needed here."""

    def generate(self, requests: "Sequence[Request]") -> "list[Sample]":
        """One sample per request, in their order."""


class ImageScorer(Protocol):
    """The part of `ezigen.metrics.Scorer` that is needed here."""

    def score(self, image: Image.Image, prompt: str, subjects: Sequence[Picture]) -> dict[str, float]:
        """Scores by name."""


@dataclass(frozen=True)
class MakerSettings:
    """What every batch of a run has in common."""

    locations: Locations
    output: RunOutput
    run_id: str
    num_slots: int
    max_picture_side_px: int
    max_picture_pixels: int
    preview_share: float
    """Share of the items, chosen by their keys, that keep a preview strip."""

    def wants_preview(self, item_key: str) -> bool:
        """Whether this item keeps a preview: the same answer in every process and every run with this share."""
        return int(item_key[:8], 16) < self.preview_share * 2**32


@dataclass
class _Work:
    """One item on its way to its row."""

    item: Item
    subjects: tuple[Picture, ...] = ()
    sample: "Sample | None" = None
    scores: dict[str, float] = field(default_factory=dict)
    error: ItemError | None = None


Outcome = ItemError | Picture


class ImageMaker:
    """Makes the images of a worker. `load(num_slots)` loads the generator; it is called again, with fewer slots, when
    the device's memory is too small.
    """

    def __init__(
        self,
        settings: MakerSettings,
        load: Callable[[int], ImageGenerator],
        scorer: ImageScorer | None = None,
        *,
        worker: str = "",
    ) -> None:
        self._settings = settings
        self._load = load
        self._num_slots = settings.num_slots
        self._generator = load(self._num_slots)
        self._scorer = scorer
        self._worker = worker
        self._transfers = ThreadPoolExecutor(_NUM_TRANSFERS, thread_name_prefix="transfer")
        self._seconds: dict[str, float] = defaultdict(float)

    def take_seconds(self) -> dict[str, float]:
        """Seconds spent on each part (read, generate, score, store) since this was last asked."""
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    def make(self, items: Sequence[Item]) -> list[ResultRow]:
        """One row per item, in their order; the image of a done one is stored.

        Raises BatchTooLarge when the batch does not fit into memory, WorkerBroken when the device is not usable.
        """
        started = time.perf_counter()
        batch = [_Work(item) for item in items]
        with self._timed("read"):
            self._read(batch)
        with self._timed("generate"):
            self._generate([work for work in batch if work.error is None])
        with self._timed("score"):
            self._score(batch)
        with self._timed("store"):
            rows = list(self._transfers.map(self._finish, batch))
        return _with_seconds(rows, time.perf_counter() - started)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - started

    # ---- pictures in

    def _read(self, batch: Sequence[_Work]) -> None:
        """Every location once, several at a time."""
        uris = list(dict.fromkeys(uri for work in batch for uri in _uris(work.item)))
        pictures = dict(zip(uris, self._transfers.map(self._read_one, uris), strict=True))
        for work in batch:
            try:
                work.subjects = _subjects(work.item, pictures)
            except ItemError as error:
                work.error = error

    def _read_one(self, uri: str) -> Outcome:
        settings = self._settings
        try:
            data = settings.locations.read_bytes(uri)
            return decode_picture(
                data, max_side_px=settings.max_picture_side_px, max_pixels=settings.max_picture_pixels
            )
        except ItemError as error:
            return ItemError(error.code, error.message if uri in error.message else f"{uri}: {error.message}")
        except Exception as error:
            logger.exception("reading %s failed in an unforeseen way", uri)
            return ItemError(ErrorCode.STORAGE_ERROR, f"{uri}: {_describe(error)}")

    # ---- networks

    def _generate(self, batch: Sequence[_Work]) -> None:
        """Samples for the whole batch, or, if that fails for a reason of one item, for each item alone."""
        if not batch:
            return
        try:
            samples = self._generate_within_memory([_to_request(work) for work in batch])
        except (BatchTooLarge, WorkerBroken):
            raise
        except Exception as error:  # noqa: BLE001 - _blame logs it and makes it the item's
            self._blame(batch, error)
        else:
            for work, sample in zip(batch, samples, strict=True):
                work.sample = sample

    def _blame(self, batch: Sequence[_Work], error: Exception) -> None:
        if len(batch) > 1:
            logger.warning("a batch of %d failed (%s); each of its items runs alone", len(batch), _describe(error))
            for work in batch:
                self._generate([work])
        elif isinstance(error, ItemError):
            batch[0].error = error
        else:
            logger.error("item %r failed", batch[0].item.row.item_id, exc_info=error)
            batch[0].error = ItemError(ErrorCode.GENERATION_FAILED, _describe(error))

    def _generate_within_memory(self, requests: "Sequence[Request]") -> "list[Sample]":
        while True:
            try:
                return self._generator.generate(requests)
            except Exception as error:
                if is_device_fault(error):
                    raise WorkerBroken(f"the device failed: {_describe(error)}") from error
                if not is_out_of_memory(error):
                    raise
                message = f"no memory for {len(requests)} images at once: {_describe(error)}"
            if self._num_slots == 1:
                raise BatchTooLarge(message)
            self._reduce_slots()
            if self._num_slots < len(requests):
                raise BatchTooLarge(message)

    def _reduce_slots(self) -> None:
        """The generator fills every call up to its slots, so a smaller batch alone would not help."""
        self._num_slots = (self._num_slots + 1) // 2
        logger.warning("out of memory: loading again with %d slots", self._num_slots)
        del self._generator
        _free_memory()
        self._generator = self._load(self._num_slots)

    def _score(self, batch: Sequence[_Work]) -> None:
        for work in batch:
            if self._scorer is None or work.sample is None:
                continue
            try:
                work.scores = self._scorer.score(work.sample.image, work.item.row.prompt, work.subjects)
            except Exception as error:
                if is_device_fault(error):
                    raise WorkerBroken(f"the device failed: {_describe(error)}") from error
                logger.exception("item %r has no scores", work.item.row.item_id)

    # ---- images out

    def _finish(self, work: _Work) -> ResultRow:
        if work.error is None:
            try:
                return self._store(work)
            except ItemError as error:
                work.error = error
            except Exception as error:
                logger.exception("item %r could not be stored", work.item.row.item_id)
                work.error = ItemError(ErrorCode.STORAGE_ERROR, f"its image could not be stored: {_describe(error)}")
        calls = work.sample.num_unet_calls if work.sample else 0
        return failed_row(
            work.item, work.error, run_id=self._settings.run_id, worker=self._worker, num_unet_calls=calls
        )

    def _store(self, work: _Work) -> ResultRow:
        sample, row, key = work.sample, work.item.row, work.item.item_key
        assert sample is not None
        stored = self._settings.output.write_image(key, encode_png(sample.image))
        panels = _panels(work.subjects, sample) if self._settings.wants_preview(key) else []
        return ResultRow(
            item_key=key,
            item_id=row.item_id,
            row_index=row.index,
            run_id=self._settings.run_id,
            status="done",
            attempts=work.item.attempts + 1,
            finished_at=datetime.now(UTC),
            prompt=row.prompt,
            subject_uri=row.subject_uri,
            subject_class=row.subject_class,
            seed=row.seed,
            image_uri=stored.uri,
            image_sha256=stored.sha256,
            image_bytes=stored.num_bytes,
            width_px=sample.image.width,
            height_px=sample.image.height,
            num_loops=sample.num_loops,
            stop_reason=sample.stop_reason,
            similarities=sample.similarities,
            scores=work.scores,
            num_unet_calls=sample.num_unet_calls,
            seconds=sample.seconds,
            worker=self._worker,
            preview=thumbnail_strip(panels) if panels else None,
            preview_panels=len(panels),
        )


def _uris(item: Item) -> Iterator[str]:
    yield from item.row.subject_uris
    if item.row.subject_mask_uri:
        yield item.row.subject_mask_uri


def _subjects(item: Item, pictures: Mapping[str, Outcome]) -> tuple[Picture, ...]:
    subjects = tuple(_good(pictures[uri]) for uri in item.row.subject_uris)
    mask_uri = item.row.subject_mask_uri
    if not mask_uri:
        return subjects
    if len(subjects) > 1:
        message = f"subject_mask_uri goes with one subject picture, but the row lists {len(subjects)}"
        raise ItemError(ErrorCode.MASK_MISMATCH, message)
    return (_cut_out(subjects[0], _good(pictures[mask_uri]), mask_uri),)


def _good(outcome: Outcome) -> Picture:
    if isinstance(outcome, ItemError):
        raise outcome
    return outcome


def _cut_out(subject: Picture, mask: Picture, mask_uri: str) -> Picture:
    """The subject on white, where the mask is bright (or opaque)."""
    if mask.rgb.size != subject.rgb.size:
        sizes = "{} x {} px, the picture {} x {} px".format(*mask.rgb.size, *subject.rgb.size)
        raise ItemError(ErrorCode.MASK_MISMATCH, f"subject_mask_uri {mask_uri} has {sizes}; both must be equal")
    grey = mask.mask or mask.rgb.convert("L")
    white = Image.new("RGB", subject.rgb.size, (255, 255, 255))
    return Picture(Image.composite(subject.rgb, white, grey), grey)


def _to_request(work: _Work) -> "Request":
    from ezigen.sampling import Request

    row = work.item.row
    return Request(
        key=work.item.item_key,
        prompt=row.prompt,
        subjects=work.subjects,
        subject_class=row.subject_class,
        negative_prompt=row.negative_prompt,
        seed=row.seed,
    )


def _panels(subjects: Sequence[Picture], sample: "Sample") -> list[Image.Image]:
    """Subject, sketch, first transfer and loops; the last of them is the result."""
    sketch = [] if sample.sketch is None else [sample.sketch]
    return [*(picture.rgb for picture in subjects[:1]), *sketch, *(sample.loops or (sample.image,))]


def _with_seconds(rows: Sequence[ResultRow], batch_seconds: float) -> list[ResultRow]:
    """Reading, scoring and storing are shared equally; the rows' seconds add up to those of the batch."""
    share = max(0.0, batch_seconds - sum(row.seconds for row in rows)) / max(1, len(rows))
    return [replace(row, seconds=row.seconds + share) for row in rows]


def _describe(error: BaseException, max_chars: int = 300) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:max_chars]}"


def _free_memory() -> None:
    import gc

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
