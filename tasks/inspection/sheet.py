"""Pictures in a labelled grid, as one picture file."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_INK, _MUTED, _PAPER = (27, 27, 25), (98, 98, 92), (255, 255, 255)
_GAP_PX, _FONT_PX, _LINE_PX = 12, 12, 16
BOX_COLOUR = (222, 49, 99)


@dataclass(frozen=True, eq=False)
class Cell:
    """Some pictures side by side and the lines below them, the first one in full ink."""

    pictures: tuple[Image.Image, ...]
    lines: tuple[str, ...]


def draw_sheet(cells: Sequence[Cell], *, picture_px: int = 128, num_columns: int = 3, title: str = "") -> Image.Image:
    """The cells in a grid on white. Pictures are enlarged or shrunk to squares of picture_px."""
    if not cells:
        raise ValueError("a sheet needs at least one cell")
    num_columns = min(num_columns, len(cells))
    num_pictures = max(len(cell.pictures) for cell in cells)
    width = num_pictures * (picture_px + 4) - 4
    height = picture_px + 6 + _LINE_PX * max(len(cell.lines) for cell in cells)
    num_rows = -(-len(cells) // num_columns)
    top = _GAP_PX + (_LINE_PX + 4 if title else 0)
    size = (_GAP_PX + num_columns * (width + _GAP_PX), top + num_rows * (height + _GAP_PX))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP_PX, _GAP_PX - 2), _fit(draw, title, size[0] - 2 * _GAP_PX), font=_font(), fill=_INK)
    for place, cell in enumerate(cells):
        row, column = divmod(place, num_columns)
        _draw_cell(sheet, cell, _GAP_PX + column * (width + _GAP_PX), top + row * (height + _GAP_PX), picture_px)
    return sheet


def to_png(sheet: Image.Image) -> bytes:
    """A sheet without losses."""
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def to_jpeg(sheet: Image.Image, quality: int = 88) -> bytes:
    """A sheet in little space."""
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=quality, optimize=True)
    return data.getvalue()


def with_box(picture: Image.Image, box: Sequence[float], picture_px: int) -> Image.Image:
    """The picture at picture_px with a box (x, y, width, height in its own pixels) drawn around something."""
    scale = picture_px / picture.width
    shown = enlarge(picture, picture_px)
    x, y, width, height = (value * scale for value in box)
    last = picture_px - 1
    corners = [max(x, 0), max(y, 0), min(x + width, last), min(y + height, last)]
    if corners[0] < corners[2] and corners[1] < corners[3]:
        ImageDraw.Draw(shown).rectangle(corners, outline=BOX_COLOUR, width=max(1, picture_px // 64))
    return shown


def enlarge(picture: Image.Image, picture_px: int, *, cells: bool = False) -> Image.Image:
    """The picture as a square of picture_px; with `cells` every pixel stays a visible square."""
    if picture.size == (picture_px, picture_px):
        return picture.convert("RGB")
    method = Image.Resampling.NEAREST if cells else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((picture_px, picture_px), method)


def _draw_cell(sheet: Image.Image, cell: Cell, left: int, top: int, picture_px: int) -> None:
    draw = ImageDraw.Draw(sheet)
    width = len(cell.pictures) * (picture_px + 4) - 4
    for number, picture in enumerate(cell.pictures):
        corner = (left + number * (picture_px + 4), top)
        sheet.paste(enlarge(picture, picture_px), corner)
        # White pictures on white paper need an edge.
        draw.rectangle((*corner, corner[0] + picture_px - 1, corner[1] + picture_px - 1), outline=(225, 225, 220))
    for number, line in enumerate(cell.lines):
        place = (left, top + picture_px + 4 + number * _LINE_PX)
        draw.text(place, _fit(draw, line, width), font=_font(), fill=_MUTED if number else _INK)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_PX)


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The text, cut with an ellipsis to so many pixels."""
    shown = " ".join(text.split())[:400]
    if draw.textlength(shown, font=_font()) <= width:
        return shown
    while shown and draw.textlength(f"{shown}…", font=_font()) > width:
        shown = shown[:-1]
    return f"{shown.rstrip()}…"
