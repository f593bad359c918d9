"""What the page says before its pictures: state, totals, times, settings, earlier runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tasks.reports.figures import Figures, RunFigures
from tasks.reports.remedies import explain
from tasks.reports.wording import (
    RUN_STATES,
    SCORE_NAMES,
    format_decimal,
    format_number,
    format_seconds,
    format_span,
    format_time,
    plural,
    score_name,
)
from tasks.storage.run_record import RunRecord, RunSummary


@dataclass(frozen=True)
class Fact:
    """A name and its value, as shown."""

    name: str
    value: str


@dataclass(frozen=True)
class FactGroup:
    """Facts under one title."""

    title: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class RunDescription:
    """Head of the page."""

    name: str
    state: str
    state_title: str
    message: str
    times: tuple[Fact, ...]


@dataclass(frozen=True)
class Number:
    """One of the large numbers."""

    label: str
    value: str
    unit: str = ""


@dataclass(frozen=True)
class ProgressPart:
    """A part of the bar that shows how much is done; `start` and `share` are in 0 to 1."""

    label: str
    style: str
    count: int
    start: float
    share: float


@dataclass(frozen=True)
class Summary:
    """What everyone wants to know first."""

    headline: tuple[str, ...]
    """Sentences."""
    details: str
    progress: tuple[ProgressPart, ...]
    progress_label: str
    numbers: tuple[Number, ...]

    @property
    def numbers_per_line(self) -> int:
        """Up to six large numbers stand in one line; more are divided into two."""
        return len(self.numbers) if len(self.numbers) <= 6 else -(-len(self.numbers) // 2)


@dataclass(frozen=True)
class PastRun:
    """A line of the list of runs."""

    run_id: str
    is_current: bool
    state: str
    started: str
    took: str
    counts: str


def describe_run(name: str, record: RunRecord | None, figures: Figures) -> RunDescription:
    """Name, state and times of the run in run.json."""
    if record is None:
        return RunDescription(name, "unknown", "No run.json", "", ())
    title: str = RUN_STATES.get(record.state, record.state)
    state: str = record.state
    if state == "finished" and figures.num_failed:
        state, title = "mixed", f"Finished, {format_number(figures.num_failed)} failed"
    return RunDescription(name, state, title, record.message, tuple(_times(record)))


def _times(record: RunRecord) -> Iterator[Fact]:
    yield Fact("Started", format_time(datetime.fromisoformat(record.started_at)))
    if record.finished_at:
        yield Fact("Finished", format_time(datetime.fromisoformat(record.finished_at)))
        yield Fact("Took", format_span(record.seconds))
    model = str(record.model.get("model", ""))
    if model:
        yield Fact("Model", model)


def num_planned(record: RunRecord | None, figures: Figures) -> int:
    """Items of the catalog, or of the output where it holds more (those of earlier catalogs and settings)."""
    rows = record.counts.get("rows", 0) if record else 0
    return max(rows, figures.num_items)


def summarize(record: RunRecord | None, figures: Figures, run: RunFigures | None) -> Summary:
    """Totals in words, as a bar and as large numbers."""
    total = num_planned(record, figures)
    parts = tuple(_progress(figures, total))
    label = ", ".join(f"{format_number(part.count)} {part.label}" for part in parts)
    numbers = tuple(_numbers(figures, record, run))
    return Summary(_headline(figures, total), _reasons(figures), parts, label or "nothing yet", numbers)


def _headline(figures: Figures, total: int) -> tuple[str, ...]:
    if not total:
        return ("There is no result yet.",)
    if figures.num_done == total:
        return (f"All {plural(total, 'image')} are ready." if total > 1 else "The image is ready.",)
    rest = total - figures.num_items
    are = "is" if total == 1 else "are"
    said = [f"{format_number(figures.num_done)} of {plural(total, 'image')} {are} ready."]
    if figures.num_failed:
        said.append(f"{plural(figures.num_failed, 'item')} failed.")
    if rest:
        said.append(f"{plural(rest, 'item')} {'is' if rest == 1 else 'are'} still to do.")
    return tuple(said)


def _reasons(figures: Figures) -> str:
    """The most frequent reasons for failures in a few words."""
    common = figures.failed_by_code.most_common()
    said = [f"{_lowered(explain(code).title)} ({format_number(count)})" for code, count in common[:4]]
    if len(common) > 4:
        said.append(f"other reasons ({format_number(sum(count for _, count in common[4:]))})")
    return f"Failed: {'; '.join(said)}." if said else ""


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _progress(figures: Figures, total: int) -> Iterator[ProgressPart]:
    start = 0.0
    for label, style, count in (
        ("ready", "part-done", figures.num_done),
        ("failed", "part-failed", figures.num_failed),
        ("to do", "part-rest", total - figures.num_items),
    ):
        if count:
            yield ProgressPart(label, style, count, start, count / total)
            start += count / total


def _numbers(figures: Figures, record: RunRecord | None, run: RunFigures | None) -> Iterator[Number]:
    yield Number("image ready" if figures.num_done == 1 else "images ready", format_number(figures.num_done))
    yield Number("item failed" if figures.num_failed == 1 else "items failed", format_number(figures.num_failed))
    rate = images_per_second(record, run)
    if rate is not None and rate < 0.5:
        yield Number("images per minute", format_decimal(rate * 60))
    else:
        yield Number("images per second", format_decimal(rate))
    value, _, unit = format_seconds(figures.mean_seconds).partition(" ")
    yield Number("of work per image", value, unit)
    yield Number("UNet calls per image", format_decimal(figures.mean_unet_calls))
    yield Number("loops per image", format_decimal(figures.mean_loops))
    for name, mean in figures.mean_scores.items():
        meaning = SCORE_NAMES.get(name, ("", ""))[1]
        yield Number(f"{score_name(name)}: {meaning}" if meaning else name, f"{mean:.3f}")


def images_per_second(record: RunRecord | None, run: RunFigures | None) -> float | None:
    """Images of a run over its wall time, loading of models included; None when that cannot be said."""
    if run is None or not run.num_done:
        return None
    start = run.first_at
    if record is not None and record.run_id == run.run_id:
        start = min(start, datetime.fromisoformat(record.started_at).timestamp())
    span = run.last_at - start
    return run.num_done / span if span > 0 else None


_GROUPS = (
    ("Model", "model"),
    ("Sampler", "sampler"),
    ("Configuration", "config"),
    ("Inputs", "inputs"),
    ("Cluster", "cluster"),
    ("Fingerprints", "fingerprints"),
    ("Versions", "versions"),
    ("Counts", "counts"),
    ("Measurements", "measurements"),
)


def list_settings(record: RunRecord | None) -> list[FactGroup]:
    """Everything run.json says about how the images were made; names as in the configuration."""
    if record is None:
        return []
    groups = [FactGroup("Run", (Fact("run_id", record.run_id),))]
    groups += [FactGroup(title, tuple(_flatten(getattr(record, field)))) for title, field in _GROUPS]
    return [group for group in groups if group.facts]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[Fact]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield Fact(f"{prefix}{name}", _show(value))


def _show(value: Any) -> str:
    if value is None or value in ("", []):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def list_runs(record: RunRecord | None) -> list[PastRun]:
    """The run of run.json and the earlier ones on the same output, the latest first; empty if this is the only one."""
    if record is None or not record.history:
        return []
    current = RunSummary(
        record.run_id, record.state, record.started_at, record.finished_at, record.counts, record.seconds
    )
    return [_past_run(run, run.run_id == record.run_id) for run in (current, *reversed(record.history))]


def _past_run(run: RunSummary, is_current: bool) -> PastRun:
    counts = ", ".join(f"{name} {format_number(count)}" for name, count in run.counts.items())
    return PastRun(
        run_id=run.run_id,
        is_current=is_current,
        state=RUN_STATES.get(run.state, run.state),
        started=format_time(datetime.fromisoformat(run.started_at)),
        took=format_span(run.seconds) if run.seconds else "–",
        counts=counts or "–",
    )
