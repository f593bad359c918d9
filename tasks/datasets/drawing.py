"""Units to pairs: reads the pictures, cuts them, and says why a candidate is no pair."""

from collections.abc import Iterator
from dataclasses import dataclass

from ezigen.config import PairConfig
from ezigen.pairs import PairPictures, RefusalReason
from tasks.datasets.units import ReadPicture, Source, Unit

CAPTION_OF_VIDEO = "a photo of a {}."


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
    raise NotImplementedError
