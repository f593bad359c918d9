"""The memory of a measured run over time as a small SVG."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

_WIDTH, _HEIGHT = 860, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 222, 44, 44
_COLOURS = {
    "driver": "#1f6f50",
    "worker 1": "#b4552d",
    "worker 2": "#d99a3d",
    "Prefect's server": "#6c6c9d",
    "Ray's GCS": "#8a8a86",
}
_LABEL_PX = 15
_MAX_POINTS = 240
_NICE = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)


def draw(figures: Mapping[str, Any]) -> str:
    """The processes of the run's first complete run; RSS in MiB over minutes."""
    run = next(run for run in figures["runs"] if run["name"] in ("first", "continued"))
    samples = run["samples"]
    minutes = np.array([sample["seconds"] for sample in samples]) / 60
    series = {name: np.array([sample["rss_mib"].get(name, 0.0) for sample in samples]) for name in _COLOURS}
    shown = {name: values for name, values in series.items() if values.max() > 0}
    plot = _Plot(float(minutes[-1]), max(float(values.max()) for values in shown.values()))
    title = f"memory of a run of {figures['rows']:,} rows: RSS in MiB, over minutes"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-weight="bold">{escape(title)}</text>',
        *plot.axes(),
        *(plot.line(name, minutes, values) for name, values in shown.items()),
        *plot.labels({name: _describe(name, run) for name in shown}, shown),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _describe(name: str, run: Mapping[str, Any]) -> str:
    slope = run["mib_per_10k_items"].get(name)
    grows = "" if slope is None else f", {slope:+.1f} per 10,000"
    return f"{name}{grows}"


class _Plot:
    """Places of minutes and MiB on the page."""

    def __init__(self, minutes: float, mib: float) -> None:
        self._minutes = minutes
        self._mib_step = _step(mib, 5)
        self._mib = self._mib_step * np.ceil(mib / self._mib_step)

    def x(self, minutes: float) -> float:
        return _LEFT + minutes / self._minutes * (_WIDTH - _LEFT - _RIGHT)

    def y(self, mib: float) -> float:
        return _HEIGHT - _BOTTOM - mib / self._mib * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> Iterator[str]:
        for mib in np.arange(0, self._mib + 1, self._mib_step):
            y = self.y(mib)
            yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e2de"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{mib:.0f}</text>'
        for minute in np.arange(0, self._minutes, _step(self._minutes, 8)):
            yield (
                f'<text x="{self.x(minute):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle" fill="#555">'
                f"{minute:g}</text>"
            )

    def line(self, name: str, minutes: np.ndarray, values: np.ndarray) -> str:
        # A process that is not there has no memory and no line.
        at = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MAX_POINTS)).astype(int))
        points = " ".join(f"{self.x(minutes[i]):.1f},{self.y(values[i]):.1f}" for i in at if values[i] > 0)
        return f'<polyline points="{points}" fill="none" stroke="{_COLOURS[name]}" stroke-width="2"/>'

    def labels(self, texts: Mapping[str, str], series: Mapping[str, np.ndarray]) -> Iterator[str]:
        """Beside the height at which each line runs, moved apart where they would overlap."""
        heights = {name: self.y(float(np.median(values[values > 0]))) for name, values in series.items()}
        order = sorted(texts, key=lambda name: heights[name])
        for name, y in zip(order, _apart([heights[name] for name in order]), strict=True):
            yield (
                f'<text x="{_WIDTH - _RIGHT + 8}" y="{y + 4:.1f}" fill="{_COLOURS[name]}" font-size="12">'
                f"{escape(texts[name])}</text>"
            )


def _step(top: float, max_steps: int) -> int:
    return next((step for step in _NICE if top / step <= max_steps), _NICE[-1])


def _apart(heights: Sequence[float]) -> list[float]:
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + _LABEL_PX) if placed else height)
    return placed
