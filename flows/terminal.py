"""What the command line shows: tables, errors in one line, and a run's progress as a bar or as plain lines."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from flows.progress import RunProgress
from tasks.monitoring.logs import wants_json, write_json_lines

if TYPE_CHECKING:
    from flows.job import Summary

logger = logging.getLogger(__name__)

PLAIN_INTERVAL_S = 10.0
PIPE_WIDTH = 200

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """An error for people: what is wrong and what to do, no traceback."""
    if wants_json():
        write_json_lines()
        logger.error(message)
        return
    err.print(f"[bold red]error[/]  {escape(message)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A small table without lines."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table, soft_wrap=False)


def print_summary(summary: "Summary") -> None:
    """The end of a run: what it made in one line, then its details."""
    style = "yellow" if summary.stopped_by else "red" if summary.failure else "green"
    out.print(f"[bold {style}]{escape(summary.failure or summary.describe())}[/]")
    summary.print_details()


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

    def planned(self, plan: str) -> None:
        """The plan is made."""
        self.console.print(escape(plan))

    def progressed(self, progress: RunProgress) -> None:
        """Shows the counts, the rate and the remaining time."""
        speed = ", ".join(part for part in (progress.describe_speed(), progress.note) if part)
        if self.console.is_terminal:
            self._bar.update(
                self._task,
                description=f"{progress.unit}{progress.describe_lost()}",
                total=progress.total,
                completed=progress.ended,
                speed=speed,
            )
        elif time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + PLAIN_INTERVAL_S
            self.console.print(f"{progress.describe_counts()}  {speed}")


class RunLines(RunDisplay):
    """Follows a run in log records, for machines that collect them."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))

    def say(self, text: str) -> None:
        """What happens next, until the next word."""
        logger.info(text)

    def progressed(self, progress: RunProgress) -> None:
        """The counts, the rate and the remaining time, now and then."""
        if time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + PLAIN_INTERVAL_S
            logger.info(progress.describe())
