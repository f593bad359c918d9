"""The page of a training run: loss, what was measured on held-out pairs and subjects, and the sample sheets by step."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tasks.reports.lines import Line, LineChart, Point, line_chart, single, thin
from tasks.reports.overview import Fact, FactGroup, Number, ProgressPart, list_runs, list_settings
from tasks.reports.pairs_card import SOURCE_NAMES
from tasks.reports.rendering import render, template_text
from tasks.reports.wording import RUN_STATES, format_decimal, format_number, plural
from tasks.storage.run_record import RunRecord

_LAST_STEPS = 100
"""Steps whose mean is called the loss of a run: one step's says little."""
_SETTINGS = ("Run", "Model", "Inputs", "Configuration", "Cluster", "Fingerprints", "Versions", "Measurements")


@dataclass(frozen=True)
class StepLog:
    """What the log says of each step, all arrays as long as `steps`; NaN where a source had no sample in a step."""

    steps: npt.NDArray[np.int64]
    loss: npt.NDArray[np.float64]
    grad_norm: npt.NDArray[np.float64]
    lr: npt.NDArray[np.float64]
    num_samples: int
    by_source: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    @property
    def last_loss(self) -> float | None:
        """Mean of the last steps; None without any."""
        known = self.loss[-_LAST_STEPS:][np.isfinite(self.loss[-_LAST_STEPS:])]
        return float(known.mean()) if len(known) else None


@dataclass(frozen=True)
class MeasuredStep:
    """One measurement; None for what was not measured."""

    step: int
    held_out_loss: float | None
    clip_t: float | None
    dino: float | None


@dataclass(frozen=True)
class Sheet:
    """The sample sheet of a step, a JPEG."""

    step: int
    jpeg: bytes = field(repr=False)

    @property
    def source(self) -> str:
        """The sheet as an address that needs no file."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


@dataclass(frozen=True)
class TrainingRun:
    """Everything that the page shows but the record of runs."""

    name: str
    num_steps: int
    log: StepLog
    measured: tuple[MeasuredStep, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    published: str = ""
    """NAME@VERSION of the adapter that came of it; empty if none did."""

    @property
    def num_done(self) -> int:
        """Steps that the log has."""
        return len(self.log.steps)


def loss_charts(run: TrainingRun) -> list[LineChart]:
    """The loss of training and of held-out pairs, and the two scores, as far as there are any."""
    held_out = Line("held out", tuple(single(_measured(run, "held_out_loss"))), marked=True)
    lines = [Line("training", tuple(thin(run.log.steps, run.log.loss))), held_out]
    last = run.num_steps
    charts = [line_chart("loss", "Loss", _loss_note(run), "mean squared error", lines, last_step=last)]
    for score, title, note in (
        ("dino", "Identity", "DINO: likeness of sample and subject"),
        ("clip_t", "Text following", "CLIP-T: how well samples show their prompts"),
    ):
        points = tuple(single(_measured(run, score)))
        charts.append(line_chart(score, title, note, "cosine", [Line(title, points, marked=True)], last_step=last))
    return [chart for chart in charts if chart]


def render_training(run: TrainingRun, record: RunRecord | None) -> str:
    """The page's HTML; the same for the same run and record."""
    state = record.state if record else "unknown"
    return render(
        "training.html.j2",
        style=template_text("report.css", "training.css"),
        script=template_text("charts.js", "training.js"),
        run=run,
        state=state,
        state_title=RUN_STATES.get(state, "No run.json"),
        message=record.message if record else "",
        headline=list(_headline(run)),
        progress=list(_progress(run)),
        numbers=list(_numbers(run, record)),
        charts=[*loss_charts(run), *_more_charts(run)],
        measured=[(step.step, _cells(step)) for step in reversed(run.measured)],
        sheets=run.sheets,
        settings=list(_settings(record)),
        runs=list_runs(record),
    )


# ---- charts


def _more_charts(run: TrainingRun) -> Iterator[LineChart]:
    log, last = run.log, run.num_steps
    sources = [Line(SOURCE_NAMES.get(name, name), tuple(thin(log.steps, loss))) for name, loss in log.by_source.items()]
    known = [line for line in sources if line.points]
    wanted = [
        line_chart("source", "Loss by source", "", "mean squared error", known, last_step=last)
        if len(known) > 1
        else None,
        line_chart(
            "gradient",
            "Gradient",
            "norm before clipping",
            "norm",
            [Line("gradient norm", tuple(thin(log.steps, log.grad_norm)))],
            last_step=last,
            from_zero=True,
        ),
        line_chart(
            "rate",
            "Learning rate",
            "",
            "learning rate",
            [Line("learning rate", _unbanded(thin(log.steps, log.lr)))],
            last_step=last,
            from_zero=True,
        ),
    ]
    yield from (chart for chart in wanted if chart)


def _unbanded(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple(Point(point.step, point.value, point.value, point.value) for point in points)


def _measured(run: TrainingRun, name: str) -> list[tuple[int, float]]:
    values = ((step.step, getattr(step, name)) for step in run.measured)
    return [(step, value) for step, value in values if value is not None]


def _loss_note(run: TrainingRun) -> str:
    last = run.log.last_loss
    if last is None:
        return ""
    return f"{format_decimal(last)} over the last {plural(min(_LAST_STEPS, run.num_done), 'step')}"


# ---- words and numbers


def _headline(run: TrainingRun) -> Iterator[str]:
    if not run.num_done:
        yield "No step is done yet."
    elif run.num_done < run.num_steps:
        yield f"{format_number(run.num_done)} of {plural(run.num_steps, 'step')} are done."
    else:
        yield f"All {plural(run.num_steps, 'step')} are done."
    if run.published:
        yield f"Published as {run.published}."


def _progress(run: TrainingRun) -> Iterator[ProgressPart]:
    total, start = max(run.num_steps, run.num_done, 1), 0.0
    parts = (("steps done", "part-done", run.num_done), ("to do", "part-rest", max(0, run.num_steps - run.num_done)))
    for label, style, count in parts:
        if count:
            yield ProgressPart(label, style, count, start, count / total)
            start += count / total


def _numbers(run: TrainingRun, record: RunRecord | None) -> Iterator[Number]:
    yield Number("samples", format_number(run.log.num_samples))
    yield Number("loss", format_decimal(run.log.last_loss))
    labels = {"held_out_loss": "held-out loss", "dino": "DINO: identity", "clip_t": "CLIP-T: text following"}
    for name, label in labels.items():
        if values := _measured(run, name):
            yield Number(label, format_decimal(values[-1][1]))
    rate = record.measurements.get("samples_per_s") if record else None
    if rate:
        yield Number("samples per second", format_decimal(float(rate)))


def _cells(step: MeasuredStep) -> list[str]:
    return [format_decimal(value) for value in (step.held_out_loss, step.dino, step.clip_t)]


def _settings(record: RunRecord | None) -> Iterator[FactGroup]:
    """What the run was told; the parts of its configuration under titles of their own."""
    for group in list_settings(record):
        if group.title not in _SETTINGS:
            continue
        parts: dict[str, list[Fact]] = {}
        for fact in group.facts:
            part, _, name = fact.name.rpartition(".") if group.title == "Configuration" else ("", "", fact.name)
            parts.setdefault(part, []).append(Fact(name, fact.value))
        yield from (FactGroup(f"{group.title}: {part}" if part else group.title, tuple(f)) for part, f in parts.items())
