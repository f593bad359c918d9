"""Measured tables as Markdown, CSV and LaTeX: ours with intervals, what was published beside it, and a sentence on
every claim.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from ezigen.metrics.statistics import Interval
from tasks.evaluation.paper import PaperTable
from tasks.evaluation.tables import MeasuredTable, TableRow, Trend
from tasks.reports.wording import plural, score_name

_VERDICTS = {
    "agrees": "agrees with the paper",
    "disagrees": "disagrees with the paper",
    "higher": "higher by more than chance",
    "lower": "lower by more than chance",
    "undecided": "undecided: the interval holds 0, so more subjects are needed",
}
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
)


def heading(measured: MeasuredTable) -> str:
    """Table 3: Modes of generation, 48 images a line."""
    table = measured.table
    number = f"{number_of(table)}: " if table.number else ""
    return f"{number}{table.title}, {plural(measured.num_cases, 'image')} a line"


def number_of(table: PaperTable) -> str:
    """Table 3, Tables 1 and 8; the name of one that is not the paper's."""
    noun = "Tables" if " and " in table.number else "Table"
    return f"{noun} {table.number}" if table.number else table.name.capitalize()


def to_markdown(measured: MeasuredTable) -> str:
    """The table with a heading, and a list of what it says about the paper's claims."""
    shown = measures_of(measured)
    heads = [
        "",
        *(f"{score_name(name)}" for name in shown),
        *(f"{score_name(name)}, published" for name in published_of(measured)),
    ]
    lines = [f"## {heading(measured)}", "", _markdown_row(heads), _markdown_row(["---"] * len(heads))]
    lines += [_markdown_row(cells) for cells in table_cells(measured, shown)]
    lines += ["", *(f"- {sentence(measured, trend)}" for trend in measured.trends)]
    return "\n".join(lines).rstrip() + "\n"


def to_csv(measured: MeasuredTable) -> str:
    """One line per row and measure: the numbers in full, empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "measure", "mean", "low", "high", "images", "subjects", "missing", "published"])
    for row in measured.rows:
        for name in measures_of(measured):
            found = row.means.get(name)
            numbers = ("",) * 5 if found is None else (found.mean, *_ends(found), found.count, found.clusters)
            writer.writerow(
                [measured.table.number, row.title, name, *numbers, row.missing, row.published.get(name, "")]
            )
    for other in measured.table.others:
        for name, value in other.figures.items():
            writer.writerow([measured.table.number, other.title, name, *("",) * 6, value])
    return text.getvalue()


def to_latex(measured: MeasuredTable) -> str:
    """A table environment for booktabs."""
    shown = measures_of(measured)
    heads = ["", *map(score_name, shown), *(f"{score_name(name)} (published)" for name in published_of(measured))]
    body = [" & ".join(map(_latex, cells)) + r" \\" for cells in table_cells(measured, shown)]
    lines = [
        r"\begin{table}",
        rf"\caption{{{_latex(heading(measured))}}}",
        rf"\begin{{tabular}}{{l{'c' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(_latex, heads)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def sentence(measured: MeasuredTable, trend: Trend) -> str:
    """One claim in words: DINO, full injection above text only: +0.310 [0.250, 0.371], agrees with the paper."""
    return f"{finding(measured, trend)}, {_VERDICTS[verdict_word(trend)]}"


def verdict_word(trend: Trend) -> str:
    """What is found of a claim of the paper: agrees, disagrees, undecided; of a question: higher, lower, undecided."""
    return trend.verdict if trend.claim.is_published else trend.difference.direction


def finding(measured: MeasuredTable, trend: Trend) -> str:
    """The same without the verdict."""
    titles = {variant.name: variant.title for variant in measured.table.variants}
    claim, said = trend.claim, trend.difference.signed()
    return f"{score_name(claim.measure)}, {titles[claim.higher]} above {titles[claim.lower]}: {said}"


def measures_of(measured: MeasuredTable) -> list[str]:
    """The table's measures that somebody has, ours or a published row."""
    known: Iterable[Mapping[str, object]] = (
        *(row.means for row in measured.rows),
        *(row.published for row in measured.rows),
        *(other.figures for other in measured.table.others),
    )
    names = {name for figures in known for name in figures}
    return [name for name in measured.table.measures if name in names]


def published_of(measured: MeasuredTable) -> list[str]:
    """Those of the table's measures for which a figure was published."""
    figures = (*(row.published for row in measured.rows), *(other.figures for other in measured.table.others))
    return [name for name in measured.table.measures if any(name in known for known in figures)]


def table_cells(measured: MeasuredTable, shown: Sequence[str]) -> list[list[str]]:
    """By line its title, ours by measure, and the published by measure; "" where there is none."""
    rows = [*measured.rows, *(TableRow(other.title, {}, other.figures) for other in measured.table.others)]
    return [
        [
            f"{row.title} ({plural(row.missing, 'image')} missing)" if row.missing else row.title,
            *(str(row.means[name]) if name in row.means else "" for name in shown),
            *(f"{row.published[name]:.3f}" if name in row.published else "" for name in published_of(measured)),
        ]
        for row in rows
    ]


def _ends(found: Interval) -> tuple[float, float] | tuple[str, str]:
    return (found.low, found.high) if found.clusters > 1 else ("", "")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _latex(text: str) -> str:
    return text.translate(_LATEX)
