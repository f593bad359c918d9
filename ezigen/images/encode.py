"""Pictures to bytes."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Literal, TypeAlias

from PIL import Image, ImageOps

ImageFormat: TypeAlias = Literal["png", "jpeg", "webp"]

SUFFIXES: dict[ImageFormat, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""How the name of an image file ends."""


def encode_image(image: Image.Image, image_format: ImageFormat = "png", quality: int = 90) -> bytes:
    """Bytes that depend on the pixels alone. quality (1 to 100) is that of JPEG, with full colour resolution, and WebP;
    PNG loses nothing.
    """
    if image_format == "png":
        return encode_png(image)
    buffer = BytesIO()
    plain = Image.new("RGB", image.size)
    plain.paste(image)
    extra = {"subsampling": 0} if image_format == "jpeg" else {"method": 4}
    plain.save(buffer, format=image_format, quality=quality, **extra)
    return buffer.getvalue()


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes that depend on the pixels alone: no time, no metadata."""
    buffer = BytesIO()
    plain = Image.new(image.mode, image.size)
    plain.paste(image)
    plain.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def side_by_side(images: Sequence[Image.Image], gap_px: int = 2) -> Image.Image:
    """The pictures in a row on white, as they are, at the height of the highest."""
    width = sum(image.width for image in images) + gap_px * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), (255, 255, 255))
    left = 0
    for image in images:
        row.paste(image.convert("RGB"), (left, 0))
        left += image.width + gap_px
    return row


def tiled(images: Sequence[Image.Image], side_px: int = 96) -> Image.Image:
    """Several pictures as one square of side_px, in as many columns as rows; a single one as it is."""
    if len(images) == 1:
        return images[0]
    columns = math.ceil(math.sqrt(len(images)))
    cell = side_px // columns
    square = Image.new("RGB", (side_px, side_px), (255, 255, 255))
    for index, image in enumerate(images):
        small = ImageOps.contain(image.convert("RGB"), (cell, cell), Image.Resampling.LANCZOS)
        left, top = index % columns * cell, index // columns * cell
        square.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
    return square


def thumbnail_strip(images: Sequence[Image.Image], side_px: int = 96, quality: int = 80) -> bytes:
    """JPEG bytes of the pictures side by side, each shrunk or enlarged into a white square of side_px."""
    strip = Image.new("RGB", (side_px * len(images), side_px), (255, 255, 255))
    for index, image in enumerate(images):
        small = ImageOps.contain(image.convert("RGB"), (side_px, side_px), Image.Resampling.LANCZOS)
        strip.paste(small, (index * side_px + (side_px - small.width) // 2, (side_px - small.height) // 2))
    buffer = BytesIO()
    strip.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
