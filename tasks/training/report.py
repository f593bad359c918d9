"""The page of a run, and the charts of its measurements, from what the run's folder holds."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.reports.lines import draw_charts
from tasks.reports.lines import to_png as chart_png
from tasks.reports.training import MeasuredStep, Sheet, StepLog, TrainingRun, loss_charts, render_training
from tasks.storage import OutputFolder
from tasks.training.log import SOURCES, read_log
from tasks.training.measurements import list_sheets, read_measurements, read_sheets

REPORT = "report.html"
MAX_SHEETS = 24
"""Sheets that the page embeds, evenly spread over the run; all are in validation/."""


def write_report(output: OutputFolder, num_steps: int, *, published: str = "") -> str:
    """Writes report.html into the run's folder and returns its location. Writing it again gives the same page."""
    page = render_training(read_run(output, num_steps, published=published), output.read_run())
    return output.write(REPORT, page.encode())


def read_run(output: OutputFolder, num_steps: int, *, published: str = "", max_sheets: int = MAX_SHEETS) -> TrainingRun:
    """What a page shows of a run that is under way or over. Raises ConfigurationError for a damaged part."""
    measured = [MeasuredStep(m.step, m.held_out_loss, m.clip_t, m.dino) for m in read_measurements(output)]
    sheets = [Sheet(step, jpeg) for step, jpeg in read_sheets(output, spread(list_sheets(output), max_sheets)).items()]
    name = output.root_uri.rstrip("/").rpartition("/")[2]
    return TrainingRun(name, num_steps, to_log(read_log(output)), tuple(measured), tuple(sheets), published)


def draw_measurements(run: TrainingRun) -> bytes | None:
    """The charts of loss and scores as a PNG; None before there is anything to draw."""
    charts = loss_charts(run)
    return chart_png(draw_charts(charts)) if charts else None


def to_log(table: pa.Table) -> StepLog:
    """The log's table as arrays."""
    sources = {source: _numbers(table, f"loss_{source}") for source in SOURCES}
    return StepLog(
        steps=table.column("step").to_numpy(),
        loss=_numbers(table, "loss"),
        grad_norm=_numbers(table, "grad_norm"),
        lr=_numbers(table, "lr"),
        num_samples=int(table.column("samples").to_numpy().sum()),
        by_source={source: loss for source, loss in sources.items() if np.isfinite(loss).any()},
    )


def spread(steps: Sequence[int], count: int) -> list[int]:
    """At most so many of the steps, evenly spread, the first and the last one among them."""
    if len(steps) <= count:
        return list(steps)
    places = np.linspace(0, len(steps) - 1, count).round().astype(int)
    return [steps[place] for place in places]


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """A column as floats, NaN where it is null."""
    values: npt.NDArray[np.float64] = table.column(name).to_numpy().astype(np.float64)
    return values
