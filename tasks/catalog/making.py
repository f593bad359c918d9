"""One item from pictures to a stored image and a result row. What goes wrong with it stays with it."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from PIL import Image

from ezigen.config import ConfigurationError, ErrorCode, ItemError
from ezigen.images import ImageFormat, Picture, encode_image, thumbnail_strip, tiled
from ezigen.images.canvas import mark_edit
from tasks.catalog.pictures import PictureReader
from tasks.catalog.results import ResultRow, failed_row
from tasks.catalog.rows import Item
from tasks.catalog.stored_subjects import StoredSubjects
from tasks.cluster.worker import WorkerBroken
from tasks.monitoring.logs import log_ids
from tasks.storage import Locations, RunOutput

if TYPE_CHECKING:
    from ezigen.sampling import Edit, Request, Sample
    from ezigen.subject import SubjectFeatures

logger = logging.getLogger(__name__)

_NUM_TRANSFERS = 8
"""Pictures read, or images written, at the same time."""


@dataclass(frozen=True, eq=False)
class Made:
    """An image and its scores."""

    sample: "Sample"
    scores: Mapping[str, float]


Submit = Callable[["Request", Sequence[Picture]], "Future[Made | None]"]
"""Hands a request and its subjects' pictures to the networks; None comes back for one that was withdrawn."""


@dataclass(frozen=True)
class MakerSettings:
    """What every batch of a run has in common."""

    locations: Locations
    output: RunOutput
    run_id: str
    max_picture_side_px: int
    max_picture_pixels: int
    preview_share: float
    """Share of the items, chosen by their keys, that keep a preview strip."""
    image_format: ImageFormat = "png"
    image_quality: int = 90

    def wants_preview(self, item_key: str) -> bool:
        """Whether this item keeps a preview: the same answer in every process and every run with this share."""
        return int(item_key[:8], 16) < self.preview_share * 2**32


class ImageMaker:
    """Makes items, each in a thread of the caller's: reading and storing go on while the networks compute."""

    def __init__(
        self, settings: MakerSettings, submit: Submit, *, worker: str = "", stored: StoredSubjects | None = None
    ) -> None:
        self._settings = settings
        self._stored = stored
        self._submit = submit
        self._worker = worker
        self._pictures = PictureReader(
            settings.locations, max_side_px=settings.max_picture_side_px, max_pixels=settings.max_picture_pixels
        )
        self._transfers = threading.BoundedSemaphore(_NUM_TRANSFERS)
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)

    def counts(self) -> dict[str, float]:
        """Seconds that the threads spent on seconds.read and seconds.store, beside the networks; see PictureReader."""
        with self._lock:
            seconds = {f"seconds.{part}": value for part, value in self._seconds.items()}
        return seconds | self._pictures.counts()

    def make(self, item: Item) -> ResultRow | None:
        """The item's row; the image of a done one is stored. None for one that was withdrawn.

        Raises WorkerBroken when the device is not usable.
        """
        with log_ids(item_id=item.row.item_id):
            return self._make(item)

    def _make(self, item: Item) -> ResultRow | None:
        started = time.perf_counter()
        num_calls = 0
        try:
            with self._timed("read"):
                subjects, features, edit = self._read(item)
            outside = time.perf_counter() - started
            made = self._submit(_to_request(item, subjects, features, edit, self._settings), subjects).result()
            if made is None:
                return None
            num_calls = made.sample.num_unet_calls
            with self._timed("store") as stored:
                return self._store(item, subjects, edit, made, outside_since=stored - outside)
        except WorkerBroken:
            raise
        except ItemError as error:
            problem = error
        except Exception as error:
            logger.exception("item %r failed in an unforeseen way", item.row.item_id)
            problem = ItemError(ErrorCode.GENERATION_FAILED, _describe(error))
        return failed_row(item, problem, run_id=self._settings.run_id, worker=self._worker, num_unet_calls=num_calls)

    @contextmanager
    def _timed(self, part: str) -> Iterator[float]:
        """A turn among the transfers; yields when it began."""
        with self._transfers:
            started = time.perf_counter()
            try:
                yield started
            finally:
                with self._lock:
                    self._seconds[part] += time.perf_counter() - started

    # ---- pictures in

    def _read(self, item: Item) -> "tuple[tuple[Picture, ...], tuple[SubjectFeatures | None, ...], Edit | None]":
        """The subjects' pictures, what a feature store knows of them as they are, and what is edited."""
        files = {uri: self._pictures.read(uri) for uri in dict.fromkeys(_uris(item))}
        pictures = {uri: picture for uri, (_, picture) in files.items()}
        subjects, edit = _subjects(item, pictures), _edit(item, pictures)
        if self._stored is None or item.row.subject_mask_uri:
            return subjects, (), edit
        named = list(zip(item.row.subject_uris, item.row.subject_classes, strict=True))
        try:
            return subjects, tuple(self._stored.find(files[uri][0], name) for uri, name in named), edit
        except ConfigurationError as error:  # a damaged store: its remedy is in the message
            raise ItemError(ErrorCode.STORAGE_ERROR, str(error)) from error

    # ---- images out

    def _store(
        self, item: Item, subjects: Sequence[Picture], edit: "Edit | None", made: Made, *, outside_since: float
    ) -> ResultRow:
        sample, row, key = made.sample, item.row, item.item_key
        try:
            settings = self._settings
            data = encode_image(sample.image, settings.image_format, settings.image_quality)
            stored = settings.output.write_image(key, data, settings.image_format)
        except ItemError:
            raise
        except Exception as error:
            logger.exception("item %r could not be stored", row.item_id)
            message = f"its image could not be stored: {_describe(error)}"
            raise ItemError(ErrorCode.STORAGE_ERROR, message) from error
        panels = _panels(subjects, edit, sample) if self._settings.wants_preview(key) else []
        return ResultRow(
            item_key=key,
            item_id=row.item_id,
            row_index=row.index,
            run_id=self._settings.run_id,
            status="done",
            attempts=item.attempts + 1,
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
            scores=dict(made.scores),
            num_unet_calls=sample.num_unet_calls,
            seconds=sample.seconds + time.perf_counter() - outside_since,
            worker=self._worker,
            preview=thumbnail_strip(panels) if panels else None,
            preview_panels=len(panels),
            source_uri=row.source_uri,
        )


def _uris(item: Item) -> Iterator[str]:
    yield from item.row.subject_uris
    for uri in (item.row.subject_mask_uri, item.row.source_uri, item.row.mask_uri):
        if uri:
            yield uri


def _subjects(item: Item, pictures: Mapping[str, Picture]) -> tuple[Picture, ...]:
    subjects = tuple(pictures[uri] for uri in item.row.subject_uris)
    mask_uri = item.row.subject_mask_uri
    if not mask_uri:
        return subjects
    if len(subjects) > 1:
        message = f"subject_mask_uri goes with one subject picture, but the row lists {len(subjects)}"
        raise ItemError(ErrorCode.MASK_MISMATCH, message)
    return (_cut_out(subjects[0], pictures[mask_uri], mask_uri),)


def _edit(item: Item, pictures: Mapping[str, Picture]) -> "Edit | None":
    from ezigen.sampling import Edit

    row = item.row
    if row.source_uri is None:
        return None
    mask = pictures[row.mask_uri] if row.mask_uri else None
    return Edit(pictures[row.source_uri], None if mask is None else _grey(mask), row.mask_box)


def _grey(mask: Picture) -> Image.Image:
    """A mask picture's alpha channel, or where it has none its brightness."""
    return mask.mask or mask.rgb.convert("L")


def _cut_out(subject: Picture, mask: Picture, mask_uri: str) -> Picture:
    """The subject on white, where the mask is bright (or opaque)."""
    if mask.rgb.size != subject.rgb.size:
        sizes = "{} x {} px, the picture {} x {} px".format(*mask.rgb.size, *subject.rgb.size)
        raise ItemError(ErrorCode.MASK_MISMATCH, f"subject_mask_uri {mask_uri} has {sizes}; both must be equal")
    grey = _grey(mask)
    white = Image.new("RGB", subject.rgb.size, (255, 255, 255))
    return Picture(Image.composite(subject.rgb, white, grey), grey)


def _to_request(
    item: Item,
    subjects: tuple[Picture, ...],
    features: "tuple[SubjectFeatures | None, ...]",
    edit: "Edit | None",
    settings: MakerSettings,
) -> "Request":
    from ezigen.sampling import Request

    row = item.row
    return Request(
        key=item.item_key,
        prompt=row.prompt,
        subjects=subjects,
        subject_class=row.subject_classes[0],
        subject_classes=row.subject_classes if len(row.subject_classes) > 1 else (),
        negative_prompt=row.negative_prompt,
        seed=row.seed,
        preview=settings.wants_preview(item.item_key),
        features=features,
        mix=row.subject_mix,
        edit=edit,
    )


def _panels(subjects: Sequence[Picture], edit: "Edit | None", sample: "Sample") -> list[Image.Image]:
    """Subjects, sketch or what is edited, first transfer and loops; the last of them is the result."""
    before = [] if sample.sketch is None else [sample.sketch]
    if edit is not None:
        before = [mark_edit(edit.source.rgb, edit.mask, edit.box)]
    shown = [tiled([picture.rgb for picture in subjects])] if subjects else []
    return [*shown, *before, *sample.loops[:-1], sample.image]


def _describe(error: BaseException, max_chars: int = 300) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:max_chars]}"
