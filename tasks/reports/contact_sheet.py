"""A picture of what a run made: products and their results in a grid, for a flow's page or a document."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ezigen.images import FORMATS
from tasks.catalog.results import ResultRow
from tasks.reports.figures import Figures
from tasks.reports.remedies import explain
from tasks.reports.wording import format_decimal, format_number, format_seconds

_INK, _MUTED, _PAPER = (27, 27, 25), (98, 98, 92), (255, 255, 255)


@dataclass(frozen=True)
class SheetLayout:
    """Sizes of a contact sheet, in pixels."""

    num_columns: int = 4
    picture_px: int = 128
    subject_px: int = 64
    gap_px: int = 16
    font_px: int = 12
    num_caption_lines: int = 2


def contact_sheet(
    rows: Sequence[ResultRow], *, layout: SheetLayout | None = None, max_items: int = 12, quality: int = 82
) -> bytes:
    """A JPEG of the first `max_items` rows that have a preview strip: product, result, prompt.

    Raises ValueError if no row has one, and OSError for a strip that is not a picture.
    """
    layout = layout or SheetLayout()
    shown = [row for row in rows if row.preview and row.preview_panels > 0][:max_items]
    if not shown:
        raise ValueError("a contact sheet needs at least one row with a preview strip")
    num_columns = min(layout.num_columns, len(shown))
    num_lines = -(-len(shown) // num_columns)
    width, height = _cell_size(layout)
    gap = layout.gap_px
    sheet = Image.new("RGB", (gap + num_columns * (width + gap), gap + num_lines * (height + gap)), _PAPER)
    for place, row in enumerate(shown):
        line, column = divmod(place, num_columns)
        _draw_cell(sheet, row, gap + column * (width + gap), gap + line * (height + gap), layout)
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=quality, optimize=True, progressive=True)
    return data.getvalue()


def summary_markdown(figures: Figures) -> str:
    """Totals and failures by reason as Markdown, without any text that came from the catalog."""
    lines = [
        "| images ready | items failed | seconds per image | UNet calls per image | loops per image |",
        "|---:|---:|---:|---:|---:|",
        f"| {format_number(figures.num_done)} | {format_number(figures.num_failed)} "
        f"| {format_seconds(figures.mean_seconds)} | {format_decimal(figures.mean_unet_calls)} "
        f"| {format_decimal(figures.mean_loops)} |",
    ]
    # A list, because tables on a flow's page do not break lines.
    for code, count in figures.failed_by_code.most_common():
        said = explain(code)
        lines += ["", f"- **{format_number(count)} x `{code}`** {said.title}. {said.remedy}"]
    return "\n".join(lines) + "\n"


def split_strip(row: ResultRow) -> list[Image.Image]:
    """The panels of a row's preview strip, from the product to the result."""
    with Image.open(io.BytesIO(row.preview or b""), formats=FORMATS) as opened:
        strip = opened.convert("RGB")
    side = strip.width // row.preview_panels
    return [strip.crop((place * side, 0, (place + 1) * side, strip.height)) for place in range(row.preview_panels)]


def _cell_size(layout: SheetLayout) -> tuple[int, int]:
    caption = layout.num_caption_lines * _line_height(layout) + 6
    return layout.subject_px + 4 + layout.picture_px, layout.picture_px + caption


def _line_height(layout: SheetLayout) -> int:
    return round(layout.font_px * 1.35)


def _draw_cell(sheet: Image.Image, row: ResultRow, left: int, top: int, layout: SheetLayout) -> None:
    panels = split_strip(row)
    result = panels[-1].resize((layout.picture_px, layout.picture_px), Image.Resampling.BICUBIC)
    sheet.paste(result, (left + layout.subject_px + 4, top))
    if len(panels) > 1:
        subject = panels[0].resize((layout.subject_px, layout.subject_px), Image.Resampling.BICUBIC)
        sheet.paste(subject, (left, top + layout.picture_px - layout.subject_px))
    _draw_caption(sheet, row, left, top + layout.picture_px + 6, layout)


def _draw_caption(sheet: Image.Image, row: ResultRow, left: int, top: int, layout: SheetLayout) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(layout.font_px)
    width, _ = _cell_size(layout)
    for number, line in enumerate(_wrap(draw, row.prompt, font, width, layout.num_caption_lines)):
        draw.text((left, top + number * _line_height(layout)), line, font=font, fill=_MUTED if number else _INK)


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: object, width: int, max_lines: int) -> list[str]:
    """The text broken into at most `max_lines` of `width` pixels; what does not fit becomes an ellipsis."""
    lines: list[str] = []
    words = text[:400].split()
    while words and len(lines) < max_lines:
        count = max((n for n in range(1, len(words) + 1) if _fits(draw, words[:n], font, width)), default=1)
        lines.append(" ".join(words[:count]))
        words = words[count:]
    if words and lines:
        lines[-1] = f"{lines[-1]} …"
    return [_shorten(draw, line, font, width) for line in lines]


def _fits(draw: ImageDraw.ImageDraw, words: list[str], font: object, width: int) -> bool:
    return draw.textlength(" ".join(words), font=font) <= width  # type: ignore[arg-type]


def _shorten(draw: ImageDraw.ImageDraw, line: str, font: object, width: int) -> str:
    if _fits(draw, [line], font, width):
        return line
    line = line.removesuffix(" …")
    while line and not _fits(draw, [f"{line}…"], font, width):
        line = line[:-1]
    return f"{line.rstrip()}…"
