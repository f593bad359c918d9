"""The page of an evaluation: the paper's tables measured, what they say of its claims, and where the method is weak."""

import base64
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from ezigen.config import ErrorCode
from ezigen.metrics.statistics import Interval
from tasks.evaluation.benchmarks import Benchmark, BenchmarkCase
from tasks.evaluation.printing import finding, heading, measures_of, number_of, verdict_word
from tasks.evaluation.tables import (
    LOWER_IS_BETTER,
    MeasuredTable,
    ScoredImage,
    TableRow,
    Verdict,
    break_down,
    means_of,
)
from tasks.reports.intervals import IntervalChart, IntervalLine, interval_chart, interval_ends
from tasks.reports.overview import Fact, Number, ProgressPart
from tasks.reports.remedies import explain
from tasks.reports.rendering import render, template_text
from tasks.reports.wording import COSTS, SCORE_NAMES, format_decimal, format_number, format_time, plural, score_name

MAX_LINES = 40
"""Subjects, or prompts, of one chart: the worst of them."""
MAX_MISSING = 100
"""Missing images that are named one by one."""
MAX_SHEETS_BYTES = 16_000_000
"""Of all contact sheets in a page; what no longer fits lies beside it."""

_FINGERPRINT_DIGITS = 12
_SCRIPTS = ("elements.js", "evaluation.js")
_STYLES = ("report.css", "evaluation.css")
_SIGNS: Mapping[Verdict, str] = {"agrees": "✓", "disagrees": "✗", "undecided": "?"}
_VERDICT_WORDS: Mapping[Verdict, tuple[str, str]] = {
    "agrees": ("agrees", "agree"),
    "disagrees": ("disagrees", "disagree"),
    "undecided": ("is undecided", "are undecided"),
}
"""verdict -> (what one claim does, what several do)."""
_NOT_DONE = {"not made": "Not made", "not measured": "Made, but not measured"}
"""Reasons that are no failures: the run did not come that far."""


@dataclass(frozen=True)
class PageTable:
    """A measured table, and the contact sheet of its lines as a JPEG; no sheet where no case has all images."""

    measured: MeasuredTable
    sheet: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class WorstCase:
    """One of the worst images with what it was made of. Pictures are data URIs; empty for one that is not readable."""

    image: ScoredImage
    case: BenchmarkCase
    given: str = field(repr=False)
    made: str = field(repr=False)


@dataclass(frozen=True)
class Closer:
    """The line of a table that the page looks at closely. worst: by measure, worst first."""

    table: str
    line: str
    images: tuple[ScoredImage, ...]
    worst: Mapping[str, tuple[WorstCase, ...]]


@dataclass(frozen=True)
class MissingImage:
    """An image that was not made, or not measured. reason: an error code with its message, or words."""

    line: str
    case_id: str
    reason: str


@dataclass(frozen=True)
class EvaluationPage:
    """Everything that the page shows.

    benchmarks: one of every kind of table; closer is of the first. num_images: of all lines. made: when the first and
    the last of them were made. own_scale: the embedded model's own encoders measured, so that published figures are on
    another scale.
    """

    name: str
    model: str
    adapter_fingerprint: str
    benchmarks: tuple[Benchmark, ...]
    num_images: int
    tables: tuple[PageTable, ...]
    closer: Closer | None = None
    missing: tuple[MissingImage, ...] = ()
    made: tuple[datetime, datetime] | None = None
    own_scale: bool = False

    @property
    def benchmark(self) -> str:
        """The names of the benchmarks."""
        *names, last = (benchmark.name for benchmark in self.benchmarks)
        return f"{', '.join(names)} and {last}" if names else last

    @property
    def cases(self) -> tuple[BenchmarkCase, ...]:
        """Of all benchmarks."""
        return tuple(case for benchmark in self.benchmarks for case in benchmark.cases)

    @property
    def num_measured(self) -> int:
        """Images that are made and measured."""
        return self.num_images - len(self.missing)

    @property
    def verdicts(self) -> Counter[Verdict]:
        """How often each was found of the paper's claims, over all tables."""
        trends = (trend for table in self.tables for trend in table.measured.trends)
        return Counter(trend.verdict for trend in trends if trend.claim.is_published)


def render_evaluation(page: EvaluationPage) -> str:
    """The page's HTML; the same for the same evaluation."""
    return render(
        "evaluation.html.j2",
        style=template_text(*_STYLES),
        script=template_text(*_SCRIPTS),
        beside=False,
        page=page,
        headline=list(_headline(page)),
        about=" ".join(map(_about, page.benchmarks)),
        progress=list(_progress(page)),
        numbers=list(_numbers(page)),
        facts=list(_facts(page)),
        scale=list(_scale(page)),
        tables=list(_tables(page)),
        breakdowns=list(_breakdowns(page)) if page.closer else [],
        worst=list(_worst(page.closer)) if page.closer else [],
        reasons=list(_reasons(page.missing)),
        listed=page.missing[:MAX_MISSING],
    )


# ---- the head


def _headline(page: EvaluationPage) -> Iterator[str]:
    if not page.num_measured:
        yield "No image is measured yet."
    elif page.missing:
        missing = f"{format_number(len(page.missing))} {'is' if len(page.missing) == 1 else 'are'} missing"
        yield f"{format_number(page.num_measured)} of {plural(page.num_images, 'image')} are measured, {missing}."
    else:
        yield f"All {plural(page.num_images, 'image')} are measured."
    verdicts = page.verdicts
    if total := verdicts.total():
        said = [_said(one, verdicts[one]) for one in _SIGNS if verdicts[one]]
        yield f"Of {plural(total, 'claim')} of the paper {', '.join(said)}."


def _said(verdict: Verdict, count: int) -> str:
    """What so many claims are found to do: 3 agree, 1 is undecided."""
    one, several = _VERDICT_WORDS[verdict]
    return f"{format_number(count)} {one if count == 1 else several}"


def _about(benchmark: Benchmark) -> str:
    part = f" ({benchmark.subset})" if benchmark.subset else ""
    return f"{benchmark.name}{part}: {plural(len(benchmark.cases), 'case')}, each with an image in every line."


def _progress(page: EvaluationPage) -> Iterator[ProgressPart]:
    total, start = max(page.num_images, 1), 0.0
    parts = (("measured", "part-done", page.num_measured), ("missing", "part-failed", len(page.missing)))
    for label, style, count in parts:
        if count:
            yield ProgressPart(label, style, count, start, count / total)
            start += count / total


def _numbers(page: EvaluationPage) -> Iterator[Number]:
    cases = page.cases
    yield Number("cases", format_number(len(cases)))
    yield Number("subjects", format_number(len({case.subject_id for case in cases})))
    yield Number("prompts", format_number(len({case.prompt_id for case in cases})))
    yield Number("images measured", format_number(page.num_measured))
    yield Number("images missing", format_number(len(page.missing)))


def _facts(page: EvaluationPage) -> Iterator[Fact]:
    yield Fact("Model", page.model)
    yield Fact("Adapter", page.adapter_fingerprint[:_FINGERPRINT_DIGITS])
    for benchmark in page.benchmarks:
        yield Fact(benchmark.name, benchmark.digest[:_FINGERPRINT_DIGITS])
    if page.made:
        first, last = map(format_time, page.made)
        yield Fact("Made", first if first == last else f"{first} to {last}")


def _scale(page: EvaluationPage) -> Iterator[str]:
    """What keeps published figures from being compared with ours."""
    if page.own_scale:
        yield (
            "They are on another scale: here the embedded model's own small encoders measured, on products of its own "
            "world. The order of lines compares, the numbers do not."
        )
    if any(benchmark.subset for benchmark in page.benchmarks):
        yield "They are of the whole benchmark, of which a part was made here."


# ---- the tables


@dataclass(frozen=True)
class _Cell:
    """A number of the table: ours, the ends of its interval, and the published one; "" for what there is not."""

    measure: str
    mean: str
    ends: str
    published: str


@dataclass(frozen=True)
class _TableView:
    """A table as the template draws it."""

    name: str
    short: str
    heading: str
    measures: list[tuple[str, str]]
    rows: list[tuple[TableRow, list[_Cell]]]
    findings: list[tuple[Verdict, str, str, str]]
    charts: list[IntervalChart]
    sheet: str
    sheet_file: str


def _tables(page: EvaluationPage) -> Iterator[_TableView]:
    left = MAX_SHEETS_BYTES
    for one in page.tables:
        measured = one.measured
        shown = measures_of(measured)
        rows = [*measured.rows, *(TableRow(other.title, {}, other.figures) for other in measured.table.others)]
        fits = one.sheet is not None and len(one.sheet) <= left
        left -= len(one.sheet) if one.sheet and fits else 0
        yield _TableView(
            name=measured.table.name,
            short=number_of(measured.table),
            heading=heading(measured),
            measures=[(score_name(name), _meaning(name)) for name in shown],
            rows=[(row, [_cell(row, name) for name in shown]) for row in rows],
            findings=[
                (trend.verdict, _SIGNS[trend.verdict], verdict_word(trend), finding(measured, trend))
                for trend in measured.trends
            ],
            charts=[chart for name in shown if (chart := _table_chart(measured.table.name, name, rows))],
            sheet=_jpeg_uri(one.sheet) if one.sheet and fits else "",
            sheet_file="" if fits or not one.sheet else f"sheets/{measured.table.name}.jpg",
        )


def _cell(row: TableRow, measure: str) -> _Cell:
    found, published = row.means.get(measure), row.published.get(measure)
    return _Cell(
        score_name(measure),
        "" if found is None else f"{found.mean:.3f}",
        "" if found is None else interval_ends(found) or "one subject",
        "" if published is None else f"{published:.3f}",
    )


def _table_chart(table: str, measure: str, rows: Sequence[TableRow]) -> IntervalChart | None:
    """None for less than two lines, of which the table says all."""
    lines = (IntervalLine(row.title, "", row.means.get(measure), row.published.get(measure)) for row in rows)
    chart = interval_chart(f"{table}-{measure}", score_name(measure), _meaning(measure), lines)
    return chart if chart and len(chart.lines) > 1 else None


def _meaning(measure: str) -> str:
    meaning = SCORE_NAMES.get(measure, ("", ""))[1]
    return f"{meaning}; less is better" if measure in LOWER_IS_BETTER else meaning


def _jpeg_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


# ---- a closer look


@dataclass(frozen=True)
class _Breakdown:
    """One measure, by subject and by prompt."""

    measure: str
    title: str
    meaning: str
    by_subject: IntervalChart | None
    by_prompt: IntervalChart | None


def _breakdowns(page: EvaluationPage) -> Iterator[_Breakdown]:
    """One per measure that the images have, DINO first: it is what the page opens with."""
    if page.closer is None:
        return
    images = page.closer.images
    known = means_of(images, [name for name in SCORE_NAMES if name not in COSTS])
    prompts = _prompts(page.benchmarks[0].cases)
    for measure in sorted(known, key=lambda name: name != "dino"):
        yield _Breakdown(
            measure,
            score_name(measure),
            _meaning(measure),
            _broken_down(images, measure, "subject_id", known[measure], {}),
            _broken_down(images, measure, "prompt_id", known[measure], prompts),
        )


def _broken_down(
    images: Sequence[ScoredImage],
    measure: str,
    by: Literal["subject_id", "prompt_id"],
    overall: Interval,
    words: Mapping[str, str],
) -> IntervalChart | None:
    found = break_down(images, measure, by)
    noun = by.removesuffix("_id")
    note = (
        plural(len(found), noun) if len(found) <= MAX_LINES else f"the worst {MAX_LINES} of {plural(len(found), noun)}"
    )
    lines = [IntervalLine(name, words.get(name, ""), interval) for name, interval in [*found.items()][:MAX_LINES]]
    title = f"{score_name(measure)} by {noun}"
    return interval_chart(f"{measure}-{by}", title, note, lines, overall=overall.mean)


def _prompts(cases: Sequence[BenchmarkCase]) -> dict[str, str]:
    """The words of every prompt; where they differ by the class word, with dots in its place."""
    by_prompt: dict[str, list[BenchmarkCase]] = {}
    for case in cases:
        by_prompt.setdefault(case.prompt_id, []).append(case)
    return {
        name: _without_class(group[0]) if len({case.prompt for case in group}) > 1 else group[0].prompt
        for name, group in by_prompt.items()
    }


def _without_class(case: BenchmarkCase) -> str:
    word = re.escape(case.subject_class)
    return re.sub(rf"(?<!\w){word}(?!\w)", "…", case.prompt, count=1) if word else case.prompt


@dataclass(frozen=True)
class _WorstView:
    """The worst images by one measure."""

    title: str
    meaning: str
    cases: list[tuple[WorstCase, list[Fact]]]


def _worst(closer: Closer) -> Iterator[_WorstView]:
    for measure, cases in closer.worst.items():
        if cases:
            known = [(one, [*_scores(one.image, measure)]) for one in cases]
            yield _WorstView(score_name(measure), _meaning(measure), known)


def _scores(image: ScoredImage, first: str) -> Iterator[Fact]:
    """All scores of an image that are neither its cost nor unknown, the one that it is shown for first."""
    names = [first, *(name for name in SCORE_NAMES if name != first and name not in COSTS)]
    yield from (Fact(score_name(name), format_decimal(image.scores[name])) for name in names if name in image.scores)


# ---- what is missing


@dataclass(frozen=True)
class _Reason:
    """Missing images of one reason."""

    count: int
    title: str
    remedy: str
    code: str


def _reasons(missing: Sequence[MissingImage]) -> Iterator[_Reason]:
    counts = Counter(one.reason.partition(":")[0] for one in missing)
    for code, count in counts.most_common():
        if code in _NOT_DONE:
            yield _Reason(count, _NOT_DONE[code], "Run the evaluation again.", "")
        elif code in [*ErrorCode]:
            yield _Reason(count, explain(code).title, explain(code).remedy, code)
        else:
            yield _Reason(count, code or "No reason is known", "", "")
