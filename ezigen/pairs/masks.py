"""Masks of objects: out of what annotation files hold, and what is measured on them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_masks
from scipy import ndimage

from ezigen.pairs.boxes import Box
from ezigen.pairs.refusal import Refusal, RefusalReason

Mask = npt.NDArray[np.bool_]
"""`h x w`, true where the object is."""

# Annotators' polygons leave the picture by rounding; by more than this they belong to another picture.
MAX_OVERSHOOT_PX = 2.0
_MAX_PIXELS = 2**31
# pycocotools takes memory for every pixel of an outline, and does not look whether it got it.
_MAX_OUTLINE_SHARE = 8


def decode_segmentation(segmentation: object, height: int, width: int) -> Mask:
    """The mask `height x width` of a COCO segmentation as JSON gives it: polygons, plain or compressed run lengths.

    Polygons are drawn by pycocotools, whose C code trusts its input: everything is checked before. Raises Refusal:
    MASK_INVALID for what is no segmentation, MASK_MISMATCH for one that belongs to a picture of another size.
    """
    if isinstance(segmentation, list):
        return _decode_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict):
        raise _invalid(f"it is {_kind(segmentation)}, neither polygons nor run lengths")
    return _decode_runs(segmentation, height, width)


def mask_of_value(labels: npt.NDArray[np.integer[Any]], value: int) -> Mask:
    """Where a palette mask `h x w` has an object's value."""
    return np.asarray(labels == value)


def bounding_box(mask: Mask) -> Box:
    """The smallest box, in whole pixels, that holds the mask. Raises Refusal(MASK_EMPTY)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise Refusal(RefusalReason.MASK_EMPTY, "the mask has no pixel")
    x, y = int(columns[0]), int(rows[0])
    return Box(x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)


def connected_share(mask: Mask) -> float:
    """The area of the mask's largest part as a share of the whole; pixels that touch at a corner are connected.

    0 for an empty mask.
    """
    labels, num_parts = ndimage.label(_cut_to_box(mask), structure=np.ones((3, 3), np.int8))
    if num_parts == 0:
        return 0.0
    areas = np.bincount(labels.ravel())[1:]
    return float(areas.max() / areas.sum())


def _cut_to_box(mask: Mask) -> Mask:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return mask[:0, :0]
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _decode_polygons(polygons: list[Any], height: int, width: int) -> Mask:
    if not polygons:
        raise _invalid("it has no polygon")
    outline_px = sum(_check_polygon(polygon, height, width) for polygon in polygons)
    if outline_px > _MAX_OUTLINE_SHARE * height * width:
        raise _invalid(f"its outline of {outline_px:.6g} px is too long for {width} x {height} px")
    runs = coco_masks.merge(coco_masks.frPyObjects(polygons, height, width))
    return _fill(_compressed_lengths(runs["counts"].decode()), height, width)


def _check_polygon(polygon: object, height: int, width: int) -> float:
    """The length of its outline in pixels."""
    if not isinstance(polygon, list):
        raise _invalid(f"a polygon is {_kind(polygon)}, not a list of coordinates")
    # pycocotools reads a list of four numbers as a box.
    if len(polygon) < 6 or len(polygon) % 2:
        raise _invalid(f"a polygon has {len(polygon)} numbers; it takes x and y of at least three points")
    # Without a dtype, so that texts are not taken for numbers.
    try:
        numbers = np.array(polygon)
    except ValueError as error:
        raise _invalid(f"a polygon holds something else than numbers ({error})") from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "if":
        raise _invalid("a polygon holds something else than numbers")
    points = numbers.reshape(-1, 2)
    over = max(-points.min(), (points - (width, height)).max())
    if not over <= MAX_OVERSHOOT_PX:  # so that NaN is refused too
        x, y = points.max(axis=0)
        raise _mismatch(f"a polygon reaches {x:.6g}, {y:.6g} in a picture of {width} x {height} px")
    return float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())


def _decode_runs(runs: dict[str, Any], height: int, width: int) -> Mask:
    size, counts = runs.get("size"), runs.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise _invalid(f"the size of its run lengths is {size!r}, not [height, width]"[:200])
    if size != [height, width]:
        raise _mismatch(f"it is {size[1]} x {size[0]} px, the picture {width} x {height} px")
    lengths = _plain_lengths(counts) if isinstance(counts, list) else _compressed_lengths(counts)
    if lengths.size and (lengths.min() < 0 or lengths.max() > _MAX_PIXELS):
        raise _invalid("it has a run of impossible length")
    if int(lengths.sum()) != height * width:
        raise _invalid(f"its runs cover {int(lengths.sum()):,} pixels of {height * width:,}")
    return _fill(lengths, height, width)


def _plain_lengths(counts: list[Any]) -> npt.NDArray[np.int64]:
    # A float or a text among them would be cut or parsed in silence.
    if not all(type(count) is int and 0 <= count <= _MAX_PIXELS for count in counts):
        raise _invalid("its run lengths are not all whole numbers from 0 on")
    return np.array(counts, dtype=np.int64)


def _compressed_lengths(counts: object) -> npt.NDArray[np.int64]:
    """The lengths that COCO's text holds: five bits a character, differences to the run before last."""
    if not isinstance(counts, str) or not counts.isascii():
        raise _invalid(f"its run lengths are {_kind(counts)}, neither a list nor COCO's text")
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63:
        raise _invalid("its compressed run lengths have a character that COCO's code does not use")
    if codes[-1] & 0x20:
        raise _invalid("its compressed run lengths end in the middle of a number")
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:
        raise _invalid("its compressed run lengths hold a number that is too long")
    values = np.add.reduceat((codes & 0x1F) << (5 * places), starts)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * (ends - starts + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _fill(lengths: npt.NDArray[np.int64], height: int, width: int) -> Mask:
    """The mask of runs of 0, 1, 0, ... down the columns."""
    inside = np.arange(lengths.size) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, lengths).reshape(width, height).T)


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _invalid(what: str) -> Refusal:
    return Refusal(RefusalReason.MASK_INVALID, f"the segmentation is not valid: {what}")


def _mismatch(what: str) -> Refusal:
    return Refusal(RefusalReason.MASK_MISMATCH, f"the segmentation does not fit the picture: {what}")
