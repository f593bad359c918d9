"""Means with their intervals as plain values: a dot with a whisker per line, and a mark for what was published."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ezigen.metrics.statistics import Interval
from tasks.reports.charts import Tick
from tasks.reports.lines import round_range, tick_label


@dataclass(frozen=True)
class IntervalLine:
    """One line: its name, words that explain the name, what was measured, and what was published."""

    label: str
    more: str = ""
    found: Interval | None = None
    published: float | None = None

    @property
    def values(self) -> list[float]:
        """Every number that the line's place on the axis depends on."""
        ends = (self.found.low, self.found.mean, self.found.high) if self.found else ()
        return [value for value in (*ends, self.published) if value is not None and math.isfinite(value)]

    @property
    def text(self) -> str:
        """What was measured, with its interval if there is one: 0.718 [0.690, 0.741]."""
        return f"{self.found.mean:.3f} {interval_ends(self.found)}".rstrip() if self.found else ""

    @property
    def label_text(self) -> str:
        """What the line shows, for those who do not see it: 0.718 [0.690, 0.741], published 0.718."""
        published = "" if self.published is None else f"published {self.published:.3f}"
        return ", ".join(filter(None, (self.text, published)))


@dataclass(frozen=True)
class IntervalChart:
    """Lines below each other over one horizontal axis from low to high. overall: drawn through all lines, dashed."""

    name: str
    title: str
    note: str
    lines: tuple[IntervalLine, ...]
    low: float
    high: float
    ticks: tuple[Tick, ...]
    overall: float | None = None

    def x(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def whisker(self, line: IntervalLine) -> tuple[float, float] | None:
        """Where a line's interval starts and ends; None for a single subject, of which nothing follows for others."""
        if line.found is None or line.found.clusters < 2:
            return None
        return self.x(line.found.low), self.x(line.found.high)


def interval_ends(found: Interval) -> str:
    """[0.690, 0.741]; empty for a single cluster, which says nothing of others."""
    return f"[{found.low:.3f}, {found.high:.3f}]" if found.clusters > 1 else ""


def interval_chart(
    name: str, title: str, note: str, lines: Iterable[IntervalLine], *, overall: float | None = None
) -> IntervalChart | None:
    """The chart of those lines that have a number; None if none has."""
    shown = tuple(line for line in lines if line.values)
    if not shown:
        return None
    low, high, ticks = _axis([value for line in shown for value in line.values])
    return IntervalChart(name, title, note, shown, low, high, ticks, overall)


def _axis(values: Sequence[float]) -> tuple[float, float, tuple[Tick, ...]]:
    """Round numbers around the values, and the ticks between them."""
    low, high, step = round_range(min(values), max(values))
    places = np.arange(round((high - low) / step) + 1) * step + low
    return low, high, tuple(Tick((at - low) / (high - low), tick_label(at, step)) for at in places)
