"""Charts as plain values: bars, ticks and captions; the page's template draws them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from tasks.reports.figures import Figures, RunFigures, SparseBins, to_datetime
from tasks.reports.wording import (
    STOP_REASONS,
    format_compact,
    format_number,
    format_seconds,
    format_span,
    plural,
    score_name,
)

MAX_COLUMNS = 48
_NICE_SPANS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis; `at` is 0 at its start and 1 at its end."""

    at: float
    label: str


@dataclass(frozen=True)
class Bar:
    """One column. `values` are stacked, in the order of the chart's series."""

    label: str
    values: tuple[float, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class StackPart:
    """One series' part of a column, as shares of the axis' length."""

    series: int
    bottom: float
    top: float


@dataclass(frozen=True)
class Chart:
    """Columns of equal width over a horizontal axis."""

    name: str
    title: str
    note: str
    x_title: str
    y_title: str
    series: tuple[str, ...]
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    y_top: float

    def stack(self, bar: Bar) -> list[StackPart]:
        """The parts of a column that have any height, from the bottom up."""
        tops = list(accumulate(value / self.y_top for value in bar.values))
        parts = (StackPart(i, bottom, top) for i, (bottom, top) in enumerate(pairwise([0.0, *tops])))
        return [part for part in parts if part.top > part.bottom]


@dataclass(frozen=True)
class Share:
    """One line of a list of shares; `share` is in 0 to 1."""

    label: str
    explanation: str
    count: int
    share: float


def loops_chart(figures: Figures) -> Chart | None:
    """Images by number of loops; None without images."""
    if not figures.loops:
        return None
    counts = [(loops, figures.loops.get(loops, 0)) for loops in range(max(figures.loops) + 1)]
    bars = tuple(Bar(plural(loops, "loop"), (count,), (plural(count, "image"),)) for loops, count in counts)
    step = math.ceil(len(bars) / 16)
    x_ticks = tuple(Tick((loops + 0.5) / len(bars), str(loops)) for loops in range(0, len(bars), step))
    note = f"{figures.mean_loops:.2f} loops per image on average"
    return _chart("loops", "Loops per image", note, ("loops", "images"), ("images",), bars, x_ticks)


def seconds_chart(figures: Figures) -> Chart | None:
    """Images by seconds of work, up to the 99th percentile; None without images."""
    bins = figures.seconds
    top, median, slow = bins.quantile(0.99), bins.quantile(0.5), bins.quantile(0.95)
    if top is None or median is None or slow is None:
        return None
    quickest = bins.items()[0][0]
    # From zero, where lengths can be compared, unless all columns would then stand in one corner.
    start, width = (quickest, top - quickest) if quickest > top / 2 else (0.0, top)
    columns = _value_columns(bins, start, start + max(width, 1e-3), "s")
    note = f"half under {format_seconds(median)}, 95 % under {format_seconds(slow)}"
    num_beyond = bins.total - sum(round(bar.values[0]) for bar in columns.bars)
    if num_beyond > 0:
        note += f"; {format_number(num_beyond)} slower than shown"
    titles = ("seconds of work per image", "images")
    return _chart("seconds", "Time per image", note, titles, ("images",), *columns)


def throughput_chart(run: RunFigures | None) -> Chart | None:
    """Items finished over time in one run, images and failures stacked, as a rate; None without rows."""
    if run is None or not run.num_rows:
        return None
    span = max(run.last_at - run.first_at, 1.0)
    width = next((nice for nice in _NICE_SPANS_S if span / nice < MAX_COLUMNS), _NICE_SPANS_S[-1] * 7)
    start = math.floor(run.first_at / width) * width
    num_columns = max(1, math.ceil((run.last_at + 1e-6 - start) / width))
    series = [rebin(b.items(), b.width, start, width, num_columns) for b in (run.done_at, run.failed_at)]
    unit, unit_s = ("second", 1) if run.num_rows / span >= 2 else ("minute", 60)
    bars = tuple(
        _rate_bar(start + i * width, width, unit_s, done, failed)
        for i, (done, failed) in enumerate(zip(*series, strict=True))
    )
    note = f"{plural(run.num_rows, 'item')} in {format_span(span)}; one column is {format_span(width)}"
    x_ticks = _time_ticks(start, width * num_columns)
    titles = ("time of day, UTC", f"items per {unit}")
    return _chart("throughput", "Throughput", note, titles, ("images", "failures"), bars, x_ticks)


def _rate_bar(start: float, width: float, unit_s: float, done: int, failed: int) -> Bar:
    label = f"{to_datetime(start):%H:%M:%S} to {to_datetime(start + width):%H:%M:%S}"
    rates = (done * unit_s / width, failed * unit_s / width)
    return Bar(label, rates, (plural(done, "image"), plural(failed, "failure")))


def score_charts(figures: Figures) -> list[Chart]:
    """Images by score, one chart per score that any image has."""
    charts = []
    for name, bins in sorted(figures.scores.items()):
        entries = bins.items()
        columns = _value_columns(bins, entries[0][0], entries[-1][0] + bins.width)
        title = score_name(name)
        note = f"mean {figures.mean_scores[name]:.3f}, median {bins.quantile(0.5):.3f}"
        charts.append(_chart(f"score-{name}", title, note, (title, "images"), ("images",), *columns))
    return charts


def stop_shares(figures: Figures) -> list[Share]:
    """Why the loops of the images ended, most frequent first."""
    explained = {reason: STOP_REASONS.get(reason, (reason, "")) for reason in figures.stop_reasons}
    total = figures.stop_reasons.total()
    return [Share(*explained[reason], count, count / total) for reason, count in figures.stop_reasons.most_common()]


def rebin(
    entries: Iterable[tuple[float, int]], entry_width: float, start: float, width: float, num_columns: int
) -> list[int]:
    """Counts of narrow bins collected into `num_columns` columns of `width` from `start`; others are left out."""
    counts = [0] * num_columns
    for edge, count in entries:
        column = math.floor((edge + entry_width / 2 - start) / width)
        if 0 <= column < num_columns:
            counts[column] += count
    return counts


class _Columns(NamedTuple):
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]


def value_chart(name: str, titles: tuple[str, str], note: str, bins: SparseBins, noun: str) -> Chart | None:
    """Counted things by a value, from the lowest to the highest one; None if nothing was counted.

    titles: of the chart and of its horizontal axis.
    """
    entries = bins.items()
    if not entries:
        return None
    columns = _value_columns(bins, entries[0][0], entries[-1][0] + bins.width, noun=noun)
    title, x_title = titles
    return _chart(name, title, note, (x_title, f"{noun}s"), (f"{noun}s",), *columns, whole=True)


def count_chart(name: str, titles: tuple[str, str], note: str, bins: SparseBins, noun: str) -> Chart | None:
    """Counted things by a small whole number, one column for each; by ranges where there are too many."""
    counts = {round(edge): count for edge, count in bins.items()}
    if not counts or max(counts) - min(counts) >= MAX_COLUMNS or bins.width != 1:
        return value_chart(name, titles, note, bins, noun)
    numbers = range(min(counts), max(counts) + 1)
    bars = tuple(Bar(str(n), (counts.get(n, 0),), (plural(counts.get(n, 0), noun),)) for n in numbers)
    step = math.ceil(len(bars) / 16)
    x_ticks = tuple(Tick((n - numbers[0] + 0.5) / len(bars), str(n)) for n in numbers[::step])
    title, x_title = titles
    return _chart(name, title, note, (x_title, f"{noun}s"), (f"{noun}s",), bars, x_ticks, whole=True)


def _value_columns(bins: SparseBins, low: float, high: float, unit: str = "", noun: str = "image") -> _Columns:
    """Columns of a round width that hold the values from `low` to `high`."""
    width = nice_step((high - low) / 24)
    start = math.floor(low / width + 1e-9) * width
    num_columns = max(1, math.ceil((high - start) / width - 1e-9))
    counts = rebin(bins.items(), bins.width, start, width, num_columns)
    edges = [f"{start + i * width:.6g}" for i in range(num_columns + 1)]
    bars = tuple(
        Bar(f"{low_edge} to {high_edge} {unit}".strip(), (count,), (plural(count, noun),))
        for (low_edge, high_edge), count in zip(pairwise(edges), counts, strict=True)
    )
    span = width * num_columns
    return _Columns(bars, tuple(Tick((value - start) / span, f"{value:.6g}") for value in _ticks(span, 6, start)))


def _chart(
    name: str,
    title: str,
    note: str,
    axis_titles: tuple[str, str],
    series: tuple[str, ...],
    bars: tuple[Bar, ...],
    x_ticks: tuple[Tick, ...],
    *,
    whole: bool | None = None,
) -> Chart:
    highest = max(sum(bar.values) for bar in bars)
    values = _ticks(highest, 4, whole=series == ("images",) if whole is None else whole)
    if values[-1] < highest:
        values.append(2 * values[-1] - values[-2] if len(values) > 1 else 1.0)
    y_top = values[-1] or 1.0
    y_ticks = tuple(Tick(value / y_top, format_compact(value)) for value in values)
    return Chart(name, title, note, *axis_titles, series, bars, x_ticks, y_ticks, y_top)


def _ticks(span: float, about: int, start: float = 0.0, *, whole: bool = False) -> list[float]:
    """Round numbers between `start` and start + span, about so many of them."""
    step = nice_step(span / about) if span > 0 else 1.0
    if whole:
        step = max(1.0, step)
    first = math.ceil(start / step - 1e-9)
    last = math.floor((start + span) / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def nice_step(at_least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `at_least`."""
    if at_least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least * (1 - 1e-9))


def _time_ticks(start: float, span: float) -> tuple[Tick, ...]:
    step = next((nice for nice in _NICE_SPANS_S if span / nice <= 5), _NICE_SPANS_S[-1] * math.ceil(span / 86_400 / 5))
    pattern = "%H:%M:%S" if step < 60 else "%H:%M" if step < 86_400 else "%d %b"
    first = math.ceil(start / step) * step
    times = [first + i * step for i in range(int((start + span - first) // step) + 1)]
    return tuple(Tick((time - start) / span, to_datetime(time).strftime(pattern)) for time in times)
