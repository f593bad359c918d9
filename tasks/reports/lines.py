"""Values over steps as plain values: lines, bands, ticks and captions; a template or a picture draws them."""

import io
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tasks.reports.charts import Tick, nice_step
from tasks.reports.wording import format_compact, format_decimal, format_number

MAX_POINTS = 240
"""Points of a line: more than a chart has room for."""
_BAND_QUANTILES = (0.05, 0.95)


@dataclass(frozen=True)
class Point:
    """A value at a step; low and high enclose nine tenths of the values that it is the mean of."""

    step: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One series, its points in the order of steps. Marked ones show each point: they are few."""

    name: str
    points: tuple[Point, ...]
    marked: bool = False


@dataclass(frozen=True)
class Readout:
    """What is said of a stretch of the horizontal axis; start and width in 0 to 1."""

    start: float
    width: float
    label: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class LineChart:
    """Lines over steps. The horizontal axis begins at step 0, the vertical one at `bottom`."""

    name: str
    title: str
    note: str
    y_title: str
    lines: tuple[Line, ...]
    last_step: float
    bottom: float
    top: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]

    def x(self, step: float) -> float:
        """Where a step lies, 0 to 1."""
        return step / self.last_step

    def y(self, value: float) -> float:
        """Where a value lies, 0 at the bottom and 1 at the top; what lies outside is moved to the edge."""
        return min(1.0, max(0.0, (value - self.bottom) / (self.top - self.bottom)))

    def path(self, line: Line) -> list[tuple[float, float]]:
        """The line's corners, in 0 to 1."""
        return [(self.x(point.step), self.y(point.value)) for point in line.points]

    def band(self, line: Line) -> list[tuple[float, float]]:
        """The outline of the band around the line; empty if its points are single values."""
        if all(point.low == point.high for point in line.points):
            return []
        upper = [(self.x(point.step), self.y(point.high)) for point in line.points]
        return upper + [(self.x(point.step), self.y(point.low)) for point in reversed(line.points)]

    def readouts(self) -> Iterator[Readout]:
        """One per step that any line has a point at, each reaching half the way to its neighbours."""
        steps = sorted({point.step for line in self.lines for point in line.points})
        edges = [0.0, *((self.x(a) + self.x(b)) / 2 for a, b in pairwise(steps)), 1.0]
        for step, (start, end) in zip(steps, pairwise(edges), strict=True):
            yield Readout(start, end - start, f"step {format_number(step)}", tuple(self._texts(step)))

    def _texts(self, step: float) -> Iterator[str]:
        for line in self.lines:
            place = bisect_left([point.step for point in line.points], step)
            if place < len(line.points) and line.points[place].step == step:
                yield f"{line.name} {format_decimal(line.points[place].value)}"


def thin(steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64], max_points: int = MAX_POINTS) -> list[Point]:
    """The values as at most so many points: means over stretches of equally many steps. Values that are not finite
    (a source without samples in a step) are left out.
    """
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    width = -(-len(steps) // max_points) if len(steps) else 1
    return [_point(steps[at : at + width], values[at : at + width]) for at in range(0, len(steps), width)]


def single(values: Sequence[tuple[int, float]]) -> list[Point]:
    """Values that are shown one by one."""
    return [Point(step, value, value, value) for step, value in values]


def line_chart(
    name: str, title: str, note: str, y_title: str, lines: Sequence[Line], *, last_step: int, from_zero: bool = False
) -> LineChart | None:
    """The chart of those lines that have a point; None if none has. `last_step` is where the axis ends."""
    shown = tuple(line for line in lines if line.points)
    if not shown:
        return None
    low, high = _range(shown)
    bottom, top, step = round_range(0.0 if from_zero else low, high)
    y_values = np.arange(round((top - bottom) / step) + 1) * step + bottom
    last = max(last_step, *(int(point.step) for line in shown for point in line.points), 1)
    x_step = max(1.0, nice_step(last / 6))
    return LineChart(
        name=name,
        title=title,
        note=note,
        y_title=y_title,
        lines=shown,
        last_step=last,
        bottom=bottom,
        top=top,
        x_ticks=tuple(Tick(at / last, format_compact(at)) for at in np.arange(0, last + 1e-9, x_step)),
        y_ticks=tuple(Tick((at - bottom) / (top - bottom), tick_label(at, step)) for at in y_values),
    )


def _point(steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Point:
    low, high = np.quantile(values, _BAND_QUANTILES) if len(values) > 1 else (values[0], values[0])
    return Point(float(steps[len(steps) // 2]), float(values.mean()), float(low), float(high))


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    """Least and greatest value. Bands count, but a few steps far above all others must not flatten the rest."""
    values = np.array([point.value for line in lines for point in line.points])
    highs = np.array([point.high for line in lines for point in line.points])
    lows = np.array([point.low for line in lines for point in line.points])
    return float(lows.min()), max(float(values.max()), float(np.quantile(highs, 0.98)))


def round_range(low: float, high: float) -> tuple[float, float, float]:
    """Round numbers around the range, and the distance of ticks between them."""
    span = high - low if high > low else abs(high) or 1.0
    step = nice_step(span / 4)
    bottom, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return bottom, top if top > bottom else bottom + step, step


def tick_label(value: float, step: float) -> str:
    """A tick's number with as many digits as tell it from its neighbours: 0.25, 1.5, 20k, 5e-5."""
    if step >= 1:
        return format_compact(value)
    if step >= 1e-3:
        return f"{value:.{-math.floor(math.log10(step) + 1e-9)}f}"
    return f"{value:.2g}".replace("e-0", "e-") if abs(value) > step / 2 else "0"


# ---- as a picture

_INK, _MUTED, _GRID, _PAPER = (27, 27, 25), (98, 98, 92), (226, 226, 220), (255, 255, 255)
_COLOURS = ((79, 111, 214), (184, 57, 46), (44, 125, 86))
_SCALE = 2
"""Drawn twice as large and shrunk, which smooths the lines."""


def draw_charts(charts: Sequence[LineChart], width: int = 380, height: int = 250) -> Image.Image:
    """The charts side by side as one picture, for pages that show pictures only."""
    picture = Image.new("RGB", (width * len(charts), height), _PAPER)
    for number, chart in enumerate(charts):
        picture.paste(_draw_chart(chart, width, height), (number * width, 0))
    return picture


def to_png(picture: Image.Image) -> bytes:
    """A drawing in little space: few colours, no losses that a person sees."""
    data = io.BytesIO()
    picture.quantize(128, Image.Quantize.MAXCOVERAGE).save(data, "PNG", optimize=True)
    return data.getvalue()


@dataclass(frozen=True)
class _Canvas:
    """A chart's plot area in pixels of the enlarged drawing."""

    chart: LineChart
    draw: ImageDraw.ImageDraw
    left: int
    top: int
    right: int
    bottom: int

    def place(self, corner: tuple[float, float]) -> tuple[float, float]:
        return (
            self.left + corner[0] * (self.right - self.left),
            self.bottom - corner[1] * (self.bottom - self.top),
        )

    def text(self, x: float, y: float, text: str, anchor: str, *, ink: tuple[int, int, int] = _MUTED) -> None:
        self.draw.text((x, y), text, font=_font(), fill=ink, anchor=anchor)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13 * _SCALE)


def _draw_chart(chart: LineChart, width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
    margins = {"left": 56, "top": 44, "right": width - 18, "bottom": height - 34}
    canvas = _Canvas(chart, ImageDraw.Draw(picture, "RGBA"), **{side: at * _SCALE for side, at in margins.items()})
    _draw_axes(canvas)
    for number, line in enumerate(chart.lines):
        _draw_line(canvas, line, _COLOURS[number % len(_COLOURS)])
    _draw_titles(canvas)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _draw_axes(canvas: _Canvas) -> None:
    for tick in canvas.chart.y_ticks:
        _, y = canvas.place((0.0, tick.at))
        canvas.draw.line((canvas.left, y, canvas.right, y), fill=_GRID, width=_SCALE)
        canvas.text(canvas.left - 8 * _SCALE, y, tick.label, "rm")
    for tick in canvas.chart.x_ticks:
        x, _ = canvas.place((tick.at, 0.0))
        canvas.text(x, canvas.bottom + 6 * _SCALE, tick.label, "ma")


def _draw_line(canvas: _Canvas, line: Line, colour: tuple[int, int, int]) -> None:
    if band := [canvas.place(corner) for corner in canvas.chart.band(line)]:
        canvas.draw.polygon(band, fill=(*colour, 45))
    path = [canvas.place(corner) for corner in canvas.chart.path(line)]
    if len(path) > 1:
        canvas.draw.line(path, fill=colour, width=2 * _SCALE, joint="curve")
    if line.marked or len(path) == 1:
        for x, y in path:
            radius = 3 * _SCALE
            canvas.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _draw_titles(canvas: _Canvas) -> None:
    canvas.text(12 * _SCALE, 10 * _SCALE, canvas.chart.title, "la", ink=_INK)
    canvas.text(canvas.right, canvas.bottom + 20 * _SCALE, "step", "ra")
    x = float(canvas.right)
    for number in reversed(range(len(canvas.chart.lines) if len(canvas.chart.lines) > 1 else 0)):
        name = canvas.chart.lines[number].name
        canvas.text(x, 10 * _SCALE, name, "ra", ink=_COLOURS[number % len(_COLOURS)])
        x -= canvas.draw.textlength(name, font=_font()) + 14 * _SCALE
