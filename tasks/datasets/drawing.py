"""Units to pairs: reads the pictures, cuts them, and says why a candidate is no pair."""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Generic, TypeVar

import msgspec
import numpy as np
from PIL import Image

from ezigen.config import ErrorCode, ItemError, PairConfig
from ezigen.images import decode_picture
from ezigen.pairs import (
    Mask,
    PairPictures,
    Refusal,
    RefusalReason,
    check_subject_mask,
    check_target_mask,
    decode_segmentation,
    distinct_frames,
    make_coco_pair,
    make_video_pair,
    mask_of_value,
    pair_rng,
)
from tasks.datasets.folder import WRONG_ENTRY
from tasks.datasets.units import CocoObject, CocoPicture, ReadPicture, Source, Unit, VideoObject

T = TypeVar("T")

CAPTION_OF_VIDEO = "a photo of a {}."

# Frames are looked at again and again while an object's pairs are drawn; a long video must not fill the memory.
_MAX_FRAMES_KEPT = 4

_REASON_OF_CODE = {
    ErrorCode.IMAGE_MISSING: RefusalReason.PICTURE_MISSING,
    ErrorCode.IMAGE_UNDECODABLE: RefusalReason.PICTURE_UNDECODABLE,
    ErrorCode.IMAGE_TOO_LARGE: RefusalReason.PICTURE_TOO_LARGE,
    ErrorCode.OUT_OF_MEMORY: RefusalReason.PICTURE_TOO_LARGE,
    ErrorCode.IMAGE_TOO_SMALL: RefusalReason.PICTURE_TOO_SMALL,
    ErrorCode.LOCATION_DENIED: RefusalReason.LOCATION_DENIED,
    ErrorCode.LOCATION_UNKNOWN_SCHEME: RefusalReason.LOCATION_DENIED,
}


@dataclass(frozen=True)
class PictureLimits:
    """What is refused before it is decoded: `max_picture_side_px` and `max_picture_pixels` of PairInputs."""

    max_side_px: int = 16_384
    max_pixels: int = 100_000_000


@dataclass(frozen=True, eq=False)
class Pair:
    """One training pair with its pictures."""

    pair_id: str
    """coco/<split>/<image>/<annotation> or youtube_vis/<video>/<object>/<start frame>-<other frame>"""
    source: Source
    group_id: str
    subject_image_id: str
    target_image_id: str
    subject_class: str
    caption: str
    pictures: PairPictures
    target_uri: str
    """The picture or frame that the target is cut from."""
    target_source_sha256: str
    """Of that file's bytes."""
    frame_distance: int | None
    """Of a video: how far the two frames are apart, counted in the frames that show the object."""
    mask_share: float
    """Share of its picture or frame that the subject covers."""


@dataclass(frozen=True)
class RefusedPair:
    """One candidate that is no pair, and why."""

    pair_id: str
    source: Source
    group_id: str
    reason: RefusalReason
    message: str
    subject_class: str


def build_unit(
    unit: Unit, ranks: range, config: PairConfig, read: ReadPicture, limits: PictureLimits | None = None
) -> Iterator[Pair | RefusedPair]:
    """The pairs of the candidates `ranks` of a unit, in the order of their ranks, with what was refused between them.

    A picture's candidates are its objects: each is a pair or refused. A video's object goes through its own sequence
    of distinct draws of two frames, the same at every call; those that fit have the ranks 0, 1, 2, ... Drawing ends
    when `ranks.stop` fit, after `4 * ranks.stop + 16` draws, or when there are no more. Refused draws before rank
    `ranks.start` are not given again. Whatever is wrong with the data becomes a RefusedPair, never an exception.
    """
    opener = _Opener(read, limits or PictureLimits())
    if unit.source == "coco":
        return _CocoBuilder(unit, config, opener).build(ranks)
    return _VideoBuilder(unit, config, opener).build(ranks)


def caption_of_video(subject_class: str) -> str:
    """The caption of a video's pair; the data set has none."""
    return CAPTION_OF_VIDEO.format(subject_class)


class _Opener:
    """Opens pictures, and turns what goes wrong into refusals."""

    def __init__(self, read: ReadPicture, limits: PictureLimits) -> None:
        self._read = read
        self._limits = limits
        self._sha256: dict[str, str] = {}

    def sha256(self, uri: str) -> str:
        """Of the bytes of a picture that was opened."""
        return self._sha256[uri]

    def picture(self, uri: str, height: int = 0, width: int = 0) -> Image.Image:
        """A picture (RGB, upright) of the size that the annotations say, unless they say none (0)."""
        limits = self._limits
        data = self._bytes(uri)
        self._sha256[uri] = hashlib.sha256(data).hexdigest()
        try:
            picture = decode_picture(data, max_side_px=limits.max_side_px, max_pixels=limits.max_pixels).rgb
        except ItemError as error:
            refusal = _to_refusal(error)
            raise Refusal(refusal.reason, f"{uri}: {refusal.message}") from error
        if height and width and picture.size != (width, height):
            message = f"{uri} is {picture.width} x {picture.height} px, its annotations say {width} x {height} px"
            raise Refusal(RefusalReason.MASK_MISMATCH, message)
        return picture

    def palette_mask(self, uri: str, value: int) -> Mask:
        """Where a palette PNG has an object's value. Raises Refusal(MASK_MISSING, MASK_INVALID, ...)."""
        try:
            data = self._bytes(uri)
        except Refusal as refusal:
            missing = refusal.reason == RefusalReason.PICTURE_MISSING
            raise Refusal(RefusalReason.MASK_MISSING if missing else refusal.reason, refusal.message) from refusal
        try:
            labels = Image.open(BytesIO(data), formats=("PNG",))
            self.check_size(uri, labels.height, labels.width)
            values = np.asarray(labels)
        except Refusal:
            raise
        except Exception as error:  # damaged files make the decoder raise nearly anything
            raise Refusal(RefusalReason.MASK_INVALID, f"{uri} is no PNG picture or damaged: {error}") from error
        if labels.mode not in ("P", "L"):
            message = f"{uri}: a palette mask holds one value per pixel, this is a picture of mode {labels.mode}"
            raise Refusal(RefusalReason.MASK_INVALID, message)
        return mask_of_value(values, value)

    def check_size(self, uri: str, height: int, width: int) -> None:
        """Raises Refusal(PICTURE_TOO_LARGE) for what would be too large to decode."""
        limits = self._limits
        if max(height, width) > limits.max_side_px or height * width > limits.max_pixels:
            message = f"{uri}: {width} x {height} px are more than max_picture_side_px or max_picture_pixels allow"
            raise Refusal(RefusalReason.PICTURE_TOO_LARGE, message)

    def _bytes(self, uri: str) -> bytes:
        try:
            return self._read(uri)
        except ItemError as error:
            raise _to_refusal(error) from error
        except FileNotFoundError as error:
            raise Refusal(RefusalReason.PICTURE_MISSING, f"{uri} does not exist") from error
        except OSError as error:
            raise Refusal(RefusalReason.STORAGE_ERROR, f"{uri} could not be read: {error}") from error


class _Remembered(Generic[T]):
    """What a function of a number gave last, for some numbers, and every refusal: nothing is read twice in vain."""

    def __init__(self, action: Callable[[int], T], max_kept: int | None = None) -> None:
        self._action = functools.lru_cache(max_kept)(action)
        # Not the exceptions: their tracebacks would keep the pictures alive.
        self._refused: dict[int, tuple[RefusalReason, str]] = {}

    def __call__(self, number: int) -> T:
        known = self._refused.get(number)
        if known is not None:
            raise Refusal(*known)
        try:
            return self._action(number)
        except Refusal as refusal:
            self._refused[number] = (refusal.reason, refusal.message)
            raise


class _CocoBuilder:
    """The pairs of one picture, which is opened once."""

    def __init__(self, unit: Unit, config: PairConfig, opener: _Opener) -> None:
        self._unit = unit
        self._config = config
        self._opener = opener
        self._given = given = msgspec.json.decode(unit.payload, type=CocoPicture)
        self._pictures = _Remembered(lambda _: opener.picture(given.uri, given.height, given.width))

    def build(self, ranks: range) -> Iterator[Pair | RefusedPair]:
        for rank in range(ranks.start, min(ranks.stop, len(self._given.objects))):
            subject = self._given.objects[rank]
            pair_id = f"{self._unit.group_id}/{subject.annotation_id}"
            try:
                yield self._pair(pair_id, subject)
            except Refusal as refusal:
                yield _refused(self._unit, pair_id, subject.subject_class, refusal)

    def _pair(self, pair_id: str, subject: CocoObject) -> Pair:
        picture, given, config = self._pictures(0), self._given, self._config
        mask = decode_segmentation(_parse(subject.segmentation), picture.height, picture.width)
        return Pair(
            pair_id=pair_id,
            source="coco",
            group_id=self._unit.group_id,
            subject_image_id=given.image_id,
            target_image_id=given.image_id,
            subject_class=subject.subject_class,
            caption=given.caption,
            pictures=make_coco_pair(picture, mask, config, pair_rng(config.seed, pair_id)),
            target_uri=given.uri,
            target_source_sha256=self._opener.sha256(given.uri),
            frame_distance=None,
            mask_share=float(mask.mean()),
        )


class _VideoBuilder:
    """The pairs of one object of one video. Frames are known by their place among those that show the object."""

    def __init__(self, unit: Unit, config: PairConfig, opener: _Opener) -> None:
        self._unit = unit
        self._config = config
        self._opener = opener
        self._given = msgspec.json.decode(unit.payload, type=VideoObject)
        self._pictures = _Remembered(self._open_picture, _MAX_FRAMES_KEPT)
        self._masks = _Remembered(self._open_mask, _MAX_FRAMES_KEPT)
        self._check_subject = _Remembered(self._judge_subject)
        self._check_target = _Remembered(self._judge_target)
        self._check_picture = _Remembered(self._judge_picture)

    def build(self, ranks: range) -> Iterator[Pair | RefusedPair]:
        rng = pair_rng(self._config.seed, f"frames of {self._unit.group_id}")
        draws = distinct_frames(rng, len(self._given.frames), self._config.youtube_vis)
        rank = 0
        for start, other in itertools.islice(draws, 4 * ranks.stop + 16):
            if rank >= ranks.stop:
                return
            is_wanted = rank >= ranks.start
            pair_id = f"{self._unit.group_id}/{self._name(start)}-{self._name(other)}"
            try:
                self._check(start, other)
                if is_wanted:
                    yield self._pair(pair_id, start, other)
                rank += 1
            except Refusal as refusal:
                if is_wanted:
                    yield _refused(self._unit, pair_id, self._given.subject_class, refusal)

    def _check(self, start: int, other: int) -> None:
        """Raises Refusal if the two frames make no pair. Masks come first: they cost less than pictures."""
        self._check_subject(start)
        self._check_target(other)
        self._check_picture(start)
        self._check_picture(other)

    def _pair(self, pair_id: str, start: int, other: int) -> Pair:
        given, config, subject_mask = self._given, self._config, self._masks(start)
        pictures = make_video_pair(
            self._pictures(start),
            subject_mask,
            self._pictures(other),
            self._masks(other),
            config,
            pair_rng(config.seed, pair_id),
        )
        return Pair(
            pair_id=pair_id,
            source="youtube_vis",
            group_id=self._unit.group_id,
            subject_image_id=f"{given.video}/{self._name(start)}",
            target_image_id=f"{given.video}/{self._name(other)}",
            subject_class=given.subject_class,
            caption=caption_of_video(given.subject_class),
            pictures=pictures,
            target_uri=given.frames[other].uri,
            target_source_sha256=self._opener.sha256(given.frames[other].uri),
            frame_distance=other - start,
            mask_share=float(subject_mask.mean()),
        )

    def _judge_subject(self, frame: int) -> None:
        self._raise_if(check_subject_mask(self._masks(frame), self._config.youtube_vis), frame, "subject")

    def _judge_target(self, frame: int) -> None:
        self._raise_if(check_target_mask(self._masks(frame), self._config.youtube_vis), frame, "target")

    def _judge_picture(self, frame: int) -> None:
        (width, height), shape = self._pictures(frame).size, self._masks(frame).shape
        if (height, width) != shape:
            message = f"the frame {self._name(frame)} is {width} x {height} px, its mask {shape[1]} x {shape[0]} px"
            raise Refusal(RefusalReason.MASK_MISMATCH, message)

    def _open_picture(self, frame: int) -> Image.Image:
        return self._opener.picture(self._given.frames[frame].uri, self._given.height, self._given.width)

    def _open_mask(self, frame: int) -> Mask:
        given, found = self._given, self._given.frames[frame]
        if found.mask_uri:
            return self._opener.palette_mask(found.mask_uri, given.mask_value)
        width, height = (given.width, given.height) if given.width and given.height else self._pictures(frame).size
        self._opener.check_size(found.uri, height, width)
        try:
            return decode_segmentation(_parse(found.segmentation), height, width)
        except Refusal as refusal:
            raise Refusal(refusal.reason, f"in the frame {found.name} {refusal.message}") from refusal

    def _raise_if(self, reason: RefusalReason | None, frame: int, role: str) -> None:
        if reason is not None:
            message = f"the frame {self._name(frame)} does not fit as {role}: {_MEANING[reason]}"
            raise Refusal(reason, message)

    def _name(self, frame: int) -> str:
        return self._given.frames[frame].name


_MEANING = {
    RefusalReason.MASK_EMPTY: "its mask does not show the object",
    RefusalReason.MASK_TOO_SMALL: "the object covers less of it than min_mask_share",
    RefusalReason.MASK_TOO_LARGE: "the object covers more of it than max_mask_share",
    RefusalReason.SUBJECT_BOX_TOO_SMALL: "the object's box is smaller than min_subject_box_share",
    RefusalReason.TARGET_BOX_TOO_LARGE: "the object's box is larger than max_target_box_share",
    RefusalReason.DISCONNECTED: "the object's largest part has less of its area than min_connected_share",
}


def _parse(segmentation: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(segmentation)
    except WRONG_ENTRY as error:
        raise Refusal(RefusalReason.MASK_INVALID, f"the segmentation is not valid JSON: {error}") from error


def _to_refusal(error: ItemError) -> Refusal:
    return Refusal(_REASON_OF_CODE.get(error.code, RefusalReason.STORAGE_ERROR), error.message)


def _refused(unit: Unit, pair_id: str, subject_class: str, refusal: Refusal) -> RefusedPair:
    return RefusedPair(pair_id, unit.source, unit.group_id, refusal.reason, refusal.message, subject_class)
