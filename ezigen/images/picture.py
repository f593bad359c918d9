"""Untrusted picture files to RGB pictures on white, with every bound checked before a pixel is decoded."""

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ezigen.config import ErrorCode, ItemError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is opened: raster formats alone. Others (EPS, PDF, ...) start interpreters."""

MAX_JPEG_SCANS = 100
"""A progressive picture has about ten. Each further one costs the sender some bytes, and us a look at all pixels."""

# Neither a stuffed zero, nor a restart, nor the beginning of another picture.
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_JPEG_SCAN, _JPEG_END = b"\xda", b"\xd9"
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323

Image.init()  # with an explicit list of formats Pillow does not load their plugins by itself


@dataclass(frozen=True, eq=False)
class Picture:
    """An 8-bit RGB picture on white, and where its subject is: mask "L", 255 = subject, None when nothing says so."""

    rgb: Image.Image
    mask: Image.Image | None = None


def decode_picture(
    data: bytes, *, max_side_px: int = 16_384, max_pixels: int = 100_000_000, min_side_px: int = 8
) -> Picture:
    """The picture in a file's bytes, upright, on white; its alpha channel becomes the mask.

    Of an animation the first frame; grey, 16-bit, palette and CMYK files are converted. Raises ItemError: before a
    pixel is decoded IMAGE_TOO_LARGE (sides, pixels, tiles, scans) and IMAGE_TOO_SMALL, IMAGE_UNDECODABLE for no picture
    or a damaged one.
    """
    if not data:
        raise ItemError(ErrorCode.IMAGE_UNDECODABLE, "the picture file is empty (0 bytes); upload it again")
    image = _open(data)
    _check_size(image.size, max_side_px, max_pixels, min_side_px)
    try:
        _check_effort(image, data, max_pixels)
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _on_white(upright)
    except MemoryError as error:
        message = (
            f"no memory to decode a picture of {_px(image.size)}; lower max_picture_pixels or give the worker more"
        )
        raise ItemError(ErrorCode.OUT_OF_MEMORY, message) from error
    except ItemError:
        raise
    except Exception as error:  # damaged files make the decoders raise nearly anything
        message = f"the {image.format} picture is damaged or truncated ({error}); upload it again"
        raise ItemError(ErrorCode.IMAGE_UNDECODABLE, message) from error


def to_picture(source: "Picture | Image.Image | bytes | str | Path") -> Picture:
    """A picture from what people have: a path, a file's bytes, or a PIL image, whose alpha channel becomes the mask.

    Raises TypeError for anything else, OSError for a file that cannot be read, and as `decode_picture`.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return _on_white(ImageOps.exif_transpose(source))
    if isinstance(source, bytes):
        return decode_picture(source)
    if isinstance(source, str | Path):
        return decode_picture(Path(source).read_bytes())
    raise TypeError(f"a picture is a path, bytes, a PIL image or a Picture, not {type(source).__name__}")


def fit_square(picture: Picture, size_px: int) -> Picture:
    """The picture padded with white (its mask with 0) to a square and resized: nothing is squashed or cut off."""
    mask = None if picture.mask is None else _fit(picture.mask, size_px, 0)
    return Picture(_fit(picture.rgb, size_px, (255, 255, 255)), mask)


def squash_square(picture: Picture, size_px: int) -> Picture:
    """The whole picture resized to a square, whatever that does to its proportions."""
    sides = (size_px, size_px)
    mask = None if picture.mask is None else picture.mask.resize(sides, Image.Resampling.LANCZOS)
    return Picture(picture.rgb.resize(sides, Image.Resampling.LANCZOS), mask)


def _fit(image: Image.Image, size_px: int, fill: int | tuple[int, int, int]) -> Image.Image:
    width, height = image.size
    if width != height:
        side = max(width, height)
        square = Image.new(image.mode, (side, side), fill)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square
    if image.width == size_px:
        return image
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS)


def _open(data: bytes) -> Image.Image:
    """Read the header; no pixel is decoded."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ItemError(ErrorCode.IMAGE_TOO_LARGE, f"the picture is too large to decode: {error}") from error
    except UnidentifiedImageError as error:
        start = data[:12].decode("ascii", "replace")
        message = f"not a picture in one of {', '.join(FORMATS)}; the file starts with {start!r}"
        raise ItemError(ErrorCode.IMAGE_UNDECODABLE, message) from error
    except Exception as error:  # see decode_picture
        raise ItemError(ErrorCode.IMAGE_UNDECODABLE, f"the picture's header is damaged: {error}") from error


def _check_size(size: tuple[int, int], max_side_px: int, max_pixels: int, min_side_px: int) -> None:
    if max(size) > max_side_px:
        message = f"the picture is {_px(size)}; the longest allowed side is {max_side_px} px: make it smaller"
        raise ItemError(ErrorCode.IMAGE_TOO_LARGE, message)
    if size[0] * size[1] > max_pixels:
        message = f"the picture is {_px(size)}; at most {max_pixels} pixels are allowed: make it smaller"
        raise ItemError(ErrorCode.IMAGE_TOO_LARGE, message)
    if min(size) < min_side_px:
        message = f"the picture is {_px(size)}; each side needs at least {min_side_px} px"
        raise ItemError(ErrorCode.IMAGE_TOO_SMALL, message)


def _check_effort(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Raises ItemError(IMAGE_TOO_LARGE) for a small picture that takes much memory or time to decode."""
    if isinstance(image, TiffImageFile):
        tile = tuple(image.tag_v2.get(tag, 0) for tag in (_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH))
        if tile[0] * tile[1] > max_pixels:
            message = f"the picture's tiles are {_px(tile)}; at most {max_pixels} pixels are allowed: save it again"
            raise ItemError(ErrorCode.IMAGE_TOO_LARGE, message)
    if isinstance(image, JpegImageFile) and (num_scans := _count_scans(data)) > MAX_JPEG_SCANS:
        message = f"the JPEG picture has more than {MAX_JPEG_SCANS} scans ({num_scans}); save it again"
        raise ItemError(ErrorCode.IMAGE_TOO_LARGE, message)


def _count_scans(jpeg: bytes) -> int:
    """The scans of the first picture of a file, as a decoder meets them."""
    num_scans, position = 0, 2
    while (found := _JPEG_MARKER.search(jpeg, position)) and found[1] != _JPEG_END:
        num_scans += found[1] == _JPEG_SCAN
        position = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2])
    return num_scans


def _on_white(image: Image.Image) -> Picture:
    if image.mode == "F":
        raise ItemError(
            ErrorCode.IMAGE_UNDECODABLE, "floating-point pictures have no agreed range; save it with 8 bits"
        )
    if image.mode.startswith("I"):
        return Picture(_from_16_bit(image).convert("RGB"))
    if not image.has_transparency_data:
        return Picture(image.convert("RGB"))
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    mask = rgba.getchannel("A")
    opaque = mask.getextrema() == (255, 255)
    return Picture(Image.alpha_composite(white, rgba).convert("RGB"), None if opaque else mask)


def _from_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion saturates at 255 instead of scaling.
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(np.clip(values, 0, 65_535) / 257).astype(np.uint8))


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"
