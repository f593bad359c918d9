"""What the command line shows: tables, errors in one line, and a run's progress as a bar or as plain lines."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from tasks.reports.remedies import explain
from tasks.reports.wording import format_decimal, format_span, plural

if TYPE_CHECKING:
    from flows.catalog_job import CatalogSummary
    from tasks.catalog.plan import CatalogPlan
    from tasks.catalog.progress import Progress

PLAIN_INTERVAL_S = 10.0
MAX_REFUSALS = 20
PIPE_WIDTH = 200

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """An error for people: what is wrong and what to do, no traceback."""
    err.print(f"[bold red]error[/]  {escape(message)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A small table without lines."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table, soft_wrap=False)


def print_plan(plan: "CatalogPlan") -> None:
    """The plan's counts and cost, and the first refused rows."""
    print_table(("", ""), plan.describe())
    refusals = list(islice(plan.refusals(), MAX_REFUSALS))
    if refusals:
        out.print("\n[bold]refused[/]")
        print_table(
            ("row", "item_id", "why"),
            ((str(r.index + 1), r.item_id, f"{r.code.value}: {r.message}") for r in refusals),
        )
    if plan.counts.refused > len(refusals):
        out.print(f"... and {plan.counts.refused - len(refusals):,} more; the run lists them all in its results")


def print_summary(summary: "CatalogSummary") -> None:
    """The end of a run: counts, reasons of failures, speed, and where the report is."""
    outcome = summary.outcome
    style = "yellow" if summary.stopped_by else "red" if summary.failure else "green"
    out.print(f"[bold {style}]{escape(summary.failure or summary.describe())}[/]")
    if outcome.failed_by_code:
        rows = [(f"{number:,}", code.value, explain(code).title) for code, number in outcome.failed_by_code.items()]
        print_table(("failed", "code", ""), rows)
    if outcome.done and outcome.seconds_per_image is not None:
        out.print(
            f"{format_span(outcome.seconds)} in all: {format_decimal(outcome.seconds_per_image)} seconds per image, "
            f"{format_decimal(outcome.done / outcome.seconds)} images/s"
        )
    if summary.postponed:
        out.print(f"{summary.postponed:,} left for later runs (limit)")
    if summary.report_uri:
        out.print(f"report: {escape(summary.report_uri)}")


class RunDisplay:
    """Follows a run on stderr: a bar in a terminal, a line now and then elsewhere (logs of cron, containers, CI)."""

    def __init__(self, console: Console = err) -> None:
        self.console = console
        self.level = logging.DEBUG if os.environ.get("EZIGEN_DEBUG") else logging.WARNING
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, speed="")
        self._next_line_at = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """What happens next, until the next word."""
        if self.console.is_terminal:
            self._bar.update(self._task, description=escape(text))
        else:
            self.console.print(escape(text))

    def planned(self, plan: "CatalogPlan") -> None:
        """The plan is made."""
        self.console.print(escape(describe_plan(plan)))

    def progressed(self, progress: "Progress") -> None:
        """Shows the counts, the rate and the remaining time."""
        speed = describe_speed(progress)
        if self.console.is_terminal:
            failed = f", {progress.failed} failed" if progress.failed else ""
            self._bar.update(
                self._task,
                description=f"images{failed}",
                total=progress.total,
                completed=progress.done + progress.failed,
                speed=speed,
            )
        elif time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + PLAIN_INTERVAL_S
            self.console.print(f"{describe_counts(progress)}  {speed}")


def describe_plan(plan: "CatalogPlan") -> str:
    """36 rows: 32 to do, 0 done before, 4 refused."""
    counts = plan.counts
    parts = [f"{counts.to_do:,} to do", f"{counts.done:,} done before"]
    if counts.failed_before:
        parts.append(f"{counts.failed_before:,} failed before")
    if counts.refused:
        parts.append(f"{counts.refused:,} refused")
    return f"{plural(counts.rows, 'row')}: {', '.join(parts)}"


def describe_counts(progress: "Progress") -> str:
    """12 of 36 done, 1 failed."""
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    return f"{progress.done:,} of {progress.total:,} done{failed}"


def describe_speed(progress: "Progress") -> str:
    """0.42 images/s, 1 min 12 s left; empty before the first image (refused rows end in no time)."""
    if not progress.done or not progress.rate_per_s:
        return ""
    left = "" if progress.eta_s is None else f", {format_span(progress.eta_s)} left"
    return f"{format_decimal(progress.rate_per_s)} images/s{left}"
