"""The report: one page that shows what a run made, complete in itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tasks.reports.charts import loops_chart, score_charts, seconds_chart, stop_shares, throughput_chart
from tasks.reports.figures import Figures, RunFigures
from tasks.reports.items import PageItems, Strip
from tasks.reports.overview import describe_run, list_runs, list_settings, summarize
from tasks.reports.remedies import EXPLANATIONS, explain
from tasks.reports.rendering import embed_json, render, template_text
from tasks.reports.survey import Survey
from tasks.reports.wording import SCORE_NAMES, STOP_REASONS, format_number, format_time, plural
from tasks.storage.run_record import RunRecord

_SCRIPTS = ("elements.js", "gallery.js", "viewer.js", "charts.js", "figures.js")


@dataclass(frozen=True)
class Failures:
    """Failed items by reason, most frequent first."""

    total: int
    groups: tuple[Mapping[str, Any], ...]


def render_page(name: str, record: RunRecord | None, survey: Survey, items: PageItems) -> str:
    """The page's HTML. `name` is what people call the output."""
    figures = survey.figures
    run_figures = survey.latest_run(record)
    strips = items.strips()
    charts = [throughput_chart(run_figures), seconds_chart(figures), loops_chart(figures), *score_charts(figures)]
    return render(
        "report.html.j2",
        style=template_text("report.css"),
        script=template_text(*_SCRIPTS),
        made_at=format_time(datetime.now(UTC)),
        run=describe_run(name, record, figures),
        summary=summarize(record, figures, run_figures),
        chart_list=[chart for chart in charts if chart],
        charts_note=_charts_note(figures, run_figures),
        stops=stop_shares(figures),
        failures=_list_failures(figures),
        settings=list_settings(record),
        runs=list_runs(record),
        omissions=_list_omissions(figures, items, strips),
        data=embed_json(_page_data(record, items)),
        strips=strips,
    )


def _page_data(record: RunRecord | None, items: PageItems) -> dict[str, Any]:
    sampler = record.sampler if record else {}
    loops = sampler.get("loops") or {}
    return {
        **items.columns(),
        "run": record.run_id if record else None,
        "threshold": loops.get("threshold") if loops.get("stop") == "similarity" else None,
        "words": {
            "stops": STOP_REASONS,
            "scores": SCORE_NAMES,
            "codes": {code: explanation.title for code, explanation in EXPLANATIONS.items()},
            "remedies": {code: explanation.remedy for code, explanation in EXPLANATIONS.items()},
        },
    }


def _list_failures(figures: Figures) -> Failures:
    groups = []
    for code, count in figures.failed_by_code.most_common():
        explanation = explain(code)
        groups.append({"code": code, "count": count, **vars(explanation)})
    return Failures(figures.num_failed, tuple(groups))


def _charts_note(figures: Figures, run: RunFigures | None) -> str:
    if run is None or len(figures.runs) < 2:
        return ""
    return f"All images of this output; throughput of run {run.run_id}"


def _list_omissions(figures: Figures, items: PageItems, strips: Sequence[Strip]) -> Mapping[str, Any] | None:
    """What the gallery leaves out, in words; None if nothing."""
    num_failed = sum(row.status == "failed" for row in items.rows.values())
    num_done = len(items.rows) - num_failed
    lines = list(_omission_lines(figures, num_done, num_failed, len(strips)))
    if not lines:
        return None
    shown, total = len(strips), figures.num_done
    return {
        "summary": f"Previews of {format_number(shown)} of {plural(total, 'image')}. What is left out?",
        "lines": lines,
    }


def _omission_lines(figures: Figures, num_done: int, num_failed: int, num_strips: int) -> Iterator[str]:
    if num_strips < num_done:
        yield (
            f"{plural(num_strips, 'item')} show their steps: a random sample and those with the lowest and the highest "
            f"scores. {format_number(num_done - num_strips)} others are listed with their facts, and with their image "
            "where this page lies beside its images folder."
        )
    if num_done < figures.num_done:
        yield (
            f"{plural(figures.num_done - num_done, 'image')} are not listed here; the figures count them. "
            "Every image and every result is in the output folder."
        )
    if num_failed < figures.num_failed:
        yield f"{format_number(figures.num_failed - num_failed)} failed items are counted by reason but not listed."
