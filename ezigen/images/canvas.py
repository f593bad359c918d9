"""A source picture and what of it is to be edited, at the size of a model and back. Needs no torch."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from ezigen.config import ErrorCode, ItemError

MAX_ASPECT = 16
"""Sources that are longer than this in one direction are refused: hardly a latent would be left in the other."""

MAX_MASK_DEVIATION = 0.05
"""Of the proportions of a mask from those of its source; more means that it belongs to another picture."""

_UNIT_PX = 8
_HALF = 128
_TINT = (230, 0, 150)


@dataclass(frozen=True, eq=False)
class Canvas:
    """An edit as a model sees it.

    picture: the source at about the model's number of pixels, in its own proportions, sides multiples of 8 px.
    cells: (h, w), True for the latents that change: those that the mask touches with at least half of its strength.
    opacity: "L" in the source's size, how much of the edited picture shows: the mask, and around it a soft edge.
    """

    source: Image.Image
    picture: Image.Image
    cells: npt.NDArray[np.bool_]
    opacity: Image.Image

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of its latents."""
        return self.cells.shape[0], self.cells.shape[1]

    def paste(self, edited: Image.Image, *, keeps_background: bool = True) -> Image.Image:
        """The result in the source's size, of an edited picture in the canvas's. Where nothing of the edit shows, its
        pixels are the source's, bit for bit, unless the background is not to be kept.
        """
        large = edited.resize(self.source.size, Image.Resampling.LANCZOS)
        if not keeps_background:
            return large
        return Image.composite(large, self.source, self.opacity)

    def source_hash(self) -> str:
        """Equal for edits of one picture, wherever they change it."""
        return _digest(self.picture)

    def hash(self) -> str:
        """Equal for equal edits."""
        return _digest(self.source, self.opacity)


def canvas_size(size_px: tuple[int, int], model_size_px: int, px_per_latent: int) -> tuple[int, int]:
    """Width and height of the canvas for a source of this width and height."""
    unit = max(_UNIT_PX, px_per_latent)
    scale = model_size_px / (size_px[0] * size_px[1]) ** 0.5
    width, height = (max(unit, round(side * scale / unit) * unit) for side in size_px)
    return width, height


def make_canvas(
    source: Image.Image,
    mask: Image.Image | None,
    box: tuple[int, int, int, int] | None,
    *,
    model_size_px: int,
    px_per_latent: int,
    feather: float,
) -> Canvas:
    """The canvas of an RGB source, and of a mask, or of a box, or of neither; feather as in `EditConfig`.

    Raises ItemError: MASK_MISMATCH for a mask of other proportions and for one that marks nothing, ROW_INVALID for a
    box without an area or beside a mask, IMAGE_TOO_SMALL for a source that is too narrow.
    """
    _check_aspect(source)
    marked = _marked(source.size, mask, box)
    if np.asarray(marked).max() < _HALF:
        what = f"mask_box {box} lies outside the source" if box is not None else "the mask marks nothing"
        message = f"{what}: paint what is to change in white (or opaque)"
        raise ItemError(ErrorCode.MASK_MISMATCH, message)
    size = canvas_size(source.size, model_size_px, px_per_latent)
    picture = source if source.size == size else source.resize(size, Image.Resampling.LANCZOS)
    cells = _touched(marked, size[0] // px_per_latent, size[1] // px_per_latent)
    return Canvas(source, picture, cells, _feathered(marked, round(feather * min(source.size) / 2)))


def mark_edit(
    source: Image.Image, mask: Image.Image | None, box: tuple[int, int, int, int] | None, side_px: int = 192
) -> Image.Image:
    """A small picture of a source, with what is edited tinted; nothing is tinted where everything is."""
    small = ImageOps.contain(source, (side_px, side_px), Image.Resampling.LANCZOS)
    if mask is None and box is None:
        return small
    marked = _marked(source.size, mask, box).resize(small.size, Image.Resampling.BOX)
    tinted = Image.blend(small, Image.new("RGB", small.size, _TINT), 0.55)
    return Image.composite(tinted, small, marked)


def _check_aspect(source: Image.Image) -> None:
    if max(source.size) > MAX_ASPECT * min(source.size):
        message = f"the source is {_px(source)}; a side may have at most {MAX_ASPECT} times the other: crop it"
        raise ItemError(ErrorCode.IMAGE_TOO_SMALL, message)


def _marked(size: tuple[int, int], mask: Image.Image | None, box: tuple[int, int, int, int] | None) -> Image.Image:
    """The mask in grey, in the source's size."""
    if mask is not None and box is not None:
        raise ItemError(ErrorCode.ROW_INVALID, "mask_uri and mask_box are both given; keep one of them")
    if box is not None:
        return _box_mask(size, box)
    if mask is None:
        return Image.new("L", size, 255)
    deviation = mask.width * size[1] / (mask.height * size[0])
    if abs(np.log(deviation)) > MAX_MASK_DEVIATION:
        message = f"the mask has {_px(mask)}, its source {size[0]} x {size[1]} px; give it the source's proportions"
        raise ItemError(ErrorCode.MASK_MISMATCH, message)
    grey = _grey(mask)
    return grey if grey.size == size else grey.resize(size, Image.Resampling.BILINEAR)


def _box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        message = f"mask_box {box} has no area; write x0,y0,x1,y1 with x0 < x1 and y0 < y1"
        raise ItemError(ErrorCode.ROW_INVALID, message)
    mask = Image.new("L", size, 0)
    inside = (max(0, x0), max(0, y0), min(size[0], x1), min(size[1], y1))
    if inside[0] < inside[2] and inside[1] < inside[3]:
        mask.paste(255, inside)
    return mask


def _grey(mask: Image.Image) -> Image.Image:
    if mask.has_transparency_data:
        alpha = mask.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha
    return mask.convert("L")


def _touched(marked: Image.Image, width: int, height: int) -> npt.NDArray[np.bool_]:
    """By latent whether a pixel within it is marked; a mask of one pixel is not lost."""
    size = max(width, marked.width), max(height, marked.height)
    if size != marked.size:
        marked = marked.resize(size, Image.Resampling.NEAREST)
    strong = np.asarray(marked) >= _HALF
    rows, columns = (np.arange(count) * side // count for count, side in ((height, size[1]), (width, size[0])))
    touched: npt.NDArray[np.bool_] = np.logical_or.reduceat(np.logical_or.reduceat(strong, rows, 0), columns, 1)
    return touched


def _feathered(marked: Image.Image, radius: int) -> Image.Image:
    """The mask, and around it a band of twice the radius in which it fades to 0. Nothing fades at the picture's rim."""
    if radius == 0:
        return marked
    values = np.asarray(marked)
    grown = Image.fromarray(_dilated(_dilated(values, radius).T, radius).T.copy())
    soft = np.asarray(grown.filter(ImageFilter.BoxBlur(radius)))
    return Image.fromarray(np.maximum(values, soft))


def _dilated(values: npt.NDArray[np.uint8], radius: int) -> npt.NDArray[np.uint8]:
    """The largest value within the radius, along the first axis."""
    largest = np.pad(values, ((radius, radius), (0, 0)))
    reach = 1
    while reach < 2 * radius + 1:
        step = min(reach, 2 * radius + 1 - reach)
        largest = np.maximum(largest[:-step], largest[step:])
        reach += step
    return largest


def _digest(*images: Image.Image) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(f"{image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def _px(image: Image.Image) -> str:
    return f"{image.width} x {image.height} px"
