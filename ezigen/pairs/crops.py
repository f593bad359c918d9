"""How pictures of a pair are cut. A pair's pixels depend on (seed, pair id) and its sources alone."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageOps

from ezigen.config import PairConfig
from ezigen.pairs.boxes import Box
from ezigen.pairs.masks import Mask, bounding_box
from ezigen.pairs.refusal import Refusal, RefusalReason

WHITE = (255, 255, 255)
_HALF = [0] * 128 + [255] * 128


@dataclass(frozen=True, eq=False)
class PairPictures:
    """The pictures of one pair, all `size_px x size_px`, and where they come from."""

    subject: Image.Image
    """RGB: the object alone on white."""
    subject_mask: Image.Image
    """"L", 0 or 255: where the subject picture shows the object."""
    target: Image.Image
    """RGB: the object in its surroundings."""
    target_mask: Image.Image
    """"L", 0 or 255: where the target shows the object."""
    subject_box: Box
    """The object in pixels of the picture that the subject is cut from."""
    target_box: Box
    """The object in pixels of `target`."""
    target_crop: Box
    """What `target` shows, in whole pixels of its source; reaches beyond the source only where it was padded."""
    flipped: bool
    """Whether the subject is mirrored."""


def pair_rng(seed: int, pair_id: str) -> Generator:
    """Random numbers of one pair: the same in every process, on every machine, in any order."""
    digest = hashlib.blake2b(f"{seed}\0{pair_id}".encode(errors="surrogatepass"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def make_coco_pair(picture: Image.Image, mask: Mask, config: PairConfig, rng: Generator) -> PairPictures:
    """The object of a picture (RGB) and the picture itself, made square by `coco_target_fit`.

    Raises Refusal: MASK_MISMATCH if the mask has another size than the picture, MASK_EMPTY.
    """
    _check_fit(picture, mask)
    box = bounding_box(mask)
    crop = _coco_crop(picture.size, box, config, rng)
    subject, subject_mask = _cut_subject(picture, mask, box, max(box.width, box.height), config.size_px)
    return PairPictures(
        subject=subject,
        subject_mask=subject_mask,
        target=cut_target(picture, crop, config.size_px),
        target_mask=_cut_mask(mask, crop, config.size_px),
        subject_box=box,
        target_box=box.seen_in(crop, config.size_px),
        target_crop=crop,
        flipped=False,
    )


def make_video_pair(
    subject_frame: Image.Image,
    subject_mask: Mask,
    target_frame: Image.Image,
    target_mask: Mask,
    config: PairConfig,
    rng: Generator,
) -> PairPictures:
    """The object of one frame (RGB), enlarged and perhaps mirrored, and a square of another frame around it.

    Raises Refusal: MASK_MISMATCH if a mask has another size than its frame, MASK_EMPTY.
    """
    _check_fit(subject_frame, subject_mask)
    _check_fit(target_frame, target_mask)
    video = config.youtube_vis
    subject_enlarge = float(rng.uniform(video.min_subject_enlarge, video.max_subject_enlarge))
    target_enlarge = float(rng.uniform(video.min_target_enlarge, video.max_target_enlarge))
    flipped = bool(rng.random() < video.flip_probability)
    box, target_box = bounding_box(subject_mask), bounding_box(target_mask)
    side = max(box.width, box.height) * subject_enlarge
    subject, cut_mask = _cut_subject(subject_frame, subject_mask, box, side, config.size_px)
    crop = square_around(target_box, target_enlarge, target_frame.size)
    return PairPictures(
        subject=ImageOps.mirror(subject) if flipped else subject,
        subject_mask=ImageOps.mirror(cut_mask) if flipped else cut_mask,
        target=cut_target(target_frame, crop, config.size_px),
        target_mask=_cut_mask(target_mask, crop, config.size_px),
        subject_box=box,
        target_box=target_box.seen_in(crop, config.size_px),
        target_crop=crop,
        flipped=flipped,
    )


def cut_target(picture: Image.Image, crop: Box, size_px: int) -> Image.Image:
    """What `crop` shows of the picture (RGB), `size_px` square; white where it reaches beyond the picture.

    Gives a stored target again from its source and `target_crop`.
    """
    return _resize(_cut(picture, crop, WHITE), size_px)


def square_around(box: Box, enlarge: float, size: tuple[int, int]) -> Box:
    """A square of whole pixels around a box, `enlarge` times its longer side, inside a frame of `size` (w, h).

    It is shifted into the frame, and no larger than the frame's shorter side: no pad colour ever.
    """
    width, height = size
    side = max(1, min(round(max(box.width, box.height) * enlarge), width, height))
    x = min(max(round(box.x + (box.width - side) / 2), 0), width - side)
    y = min(max(round(box.y + (box.height - side) / 2), 0), height - side)
    return Box(x, y, side, side)


def _coco_crop(size: tuple[int, int], box: Box, config: PairConfig, rng: Generator) -> Box:
    width, height = size
    if config.coco_target_fit == "squash":
        return Box(0, 0, width, height)
    if config.coco_target_fit == "pad":
        side = max(width, height)
        return Box(-((side - width) // 2), -((side - height) // 2), side, side)
    side = min(width, height)
    x = _draw_offset(rng, box.x, box.width, side, width)
    y = _draw_offset(rng, box.y, box.height, side, height)
    return Box(x, y, side, side)


def _draw_offset(rng: Generator, start: float, length: float, side: int, picture_side: int) -> int:
    """Where a window of `side` begins that shows as much as can be of [start, start + length)."""
    low, high = sorted((int(start + length) - side, int(start)))
    low, high = (min(max(bound, 0), picture_side - side) for bound in (low, high))
    return int(rng.integers(low, high + 1))


def _cut_subject(
    picture: Image.Image, mask: Mask, box: Box, side: float, size_px: int
) -> tuple[Image.Image, Image.Image]:
    """The object on white in a square of `side` around its box, and its mask."""
    whole = max(1, round(side))
    x = int(box.x) - (whole - int(box.width)) // 2
    y = int(box.y) - (whole - int(box.height)) // 2
    square = Box(x, y, whole, whole)
    seen = _cut(_mask_picture(mask), square, 0)
    alone = Image.composite(_cut(picture, square, WHITE), Image.new("RGB", seen.size, WHITE), seen)
    return _resize(alone, size_px), _resize_mask(seen, size_px)


def _cut_mask(mask: Mask, crop: Box, size_px: int) -> Image.Image:
    return _resize_mask(_cut(_mask_picture(mask), crop, 0), size_px)


def _cut(image: Image.Image, crop: Box, fill: int | tuple[int, int, int]) -> Image.Image:
    """A box of an image in whole pixels; `fill` where it reaches beyond."""
    left, top = round(crop.x), round(crop.y)
    right, bottom = left + round(crop.width), top + round(crop.height)
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if inside == (left, top, right, bottom):
        return image.crop(inside)
    canvas = Image.new(image.mode, (right - left, bottom - top), fill)
    canvas.paste(image.crop(inside), (inside[0] - left, inside[1] - top))
    return canvas


def _resize(image: Image.Image, size_px: int) -> Image.Image:
    if image.size == (size_px, size_px):
        return image
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS)


def _resize_mask(mask: Image.Image, size_px: int) -> Image.Image:
    """A mask again: what is more than half inside."""
    if mask.size != (size_px, size_px):
        # A border between 0 and 255 needs no sharper filter, and this one costs a third.
        mask = mask.resize((size_px, size_px), Image.Resampling.BILINEAR)
    return mask.point(_HALF)


def _mask_picture(mask: Mask) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(255))


def _check_fit(picture: Image.Image, mask: Mask) -> None:
    height, width = mask.shape
    if picture.size != (width, height):
        raise Refusal(
            RefusalReason.MASK_MISMATCH,
            f"the mask is {width} x {height} px, the picture {picture.width} x {picture.height} px",
        )
