"""Candidates for pairs as planning keeps them: one row for what is read together."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import msgspec
import pyarrow as pa

Source = Literal["coco", "youtube_vis"]
SOURCES: tuple[Source, ...] = ("coco", "youtube_vis")

UNIT_SCHEMA = pa.schema([
    pa.field("source", pa.string(), nullable=False),
    pa.field("group_id", pa.string(), nullable=False),
    pa.field("num_candidates", pa.int64(), nullable=False),
    pa.field("subject_class", pa.string()),
    pa.field("payload", pa.large_binary(), nullable=False),
])  # fmt: skip

ReadPicture = Callable[[str], bytes]
"""The bytes at a location; `Locations.read_bytes` of the reader's `locations`."""


@dataclass(frozen=True)
class Unit:
    """One group of candidates that is read together: a COCO picture with its objects, or one object of one video.

    Candidate k of a picture is its k-th largest object; of a video's object, the k-th draw of two frames that fits.
    """

    source: Source
    group_id: str
    """coco/<split>/<image> or youtube_vis/<video>/<object>; unique, and the beginning of its pairs' ids."""
    num_candidates: int
    """How many pairs can be made of it at most."""
    subject_class: str | None
    """None for a picture, whose objects have a class each."""
    payload: bytes
    """JSON: a CocoPicture or a VideoObject."""

    def to_row(self) -> dict[str, Any]:
        """A row of UNIT_SCHEMA."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The unit in a row that has the columns of UNIT_SCHEMA, perhaps among others."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})


class CocoObject(msgspec.Struct, frozen=True, gc=False):
    """One object of a picture."""

    annotation_id: str
    subject_class: str
    area_px: float
    segmentation: msgspec.Raw
    """As in the annotation file: polygons or run lengths."""


class CocoPicture(msgspec.Struct, frozen=True):
    """What `build_unit` needs of a COCO picture."""

    uri: str
    image_id: str
    """<split>/<id>"""
    width: int
    """As the annotations say; 0 if they do not."""
    height: int
    caption: str
    objects: list[CocoObject]
    """The subjects, largest first."""


class VideoFrame(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One frame that shows the object, and its mask: run lengths or a palette picture."""

    name: str
    uri: str
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    mask_uri: str = ""


class VideoObject(msgspec.Struct, frozen=True):
    """What `build_unit` needs of one object of one video."""

    video: str
    subject_class: str
    width: int
    """As the annotations say; 0 if they do not."""
    height: int
    frames: list[VideoFrame]
    """Those that show the object, in the video's order."""
    mask_value: int = 0
    """The object's value in its palette pictures."""
