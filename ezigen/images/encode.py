"""Pictures to bytes."""

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageOps


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes that depend on the pixels alone: no time, no metadata."""
    buffer = BytesIO()
    plain = Image.new(image.mode, image.size)
    plain.paste(image)
    plain.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def thumbnail_strip(images: Sequence[Image.Image], side_px: int = 96, quality: int = 80) -> bytes:
    """JPEG bytes of the pictures side by side, each shrunk or enlarged into a white square of side_px."""
    strip = Image.new("RGB", (side_px * len(images), side_px), (255, 255, 255))
    for index, image in enumerate(images):
        small = ImageOps.contain(image.convert("RGB"), (side_px, side_px), Image.Resampling.LANCZOS)
        strip.paste(small, (index * side_px + (side_px - small.width) // 2, (side_px - small.height) // 2))
    buffer = BytesIO()
    strip.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
