"""`ezigen status`: how the last run on an output is doing, once or until it ends. Starts no server and no Ray."""

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.exits import EXIT_FAILED
from flows.terminal import out
from tasks.reports.remedies import explain
from tasks.reports.wording import format_decimal, format_number, format_span, plural

if TYPE_CHECKING:
    from tasks.catalog.status import RunStatus, StatusReader

INTERVAL_S = 3.0


def show_status(reader: "StatusReader", *, price: float | None, as_json: bool) -> int:
    """Prints the status once. Returns the exit code: 1 for a run that failed or was lost."""
    status = reader.read()
    if as_json:
        json.dump(to_plain(status, price), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        out.print(draw(status, price))
    return exit_code(status)


def watch_status(reader: "StatusReader", *, price: float | None, sleep: Callable[[float], None] = time.sleep) -> int:
    """Shows the status until the run has ended; returns its exit code."""
    with Live(console=out, auto_refresh=False, transient=False) as live:
        while True:
            status = reader.read()
            live.update(draw(status, price), refresh=True)
            if not status.is_running:
                return exit_code(status)
            sleep(INTERVAL_S)


def exit_code(status: "RunStatus") -> int:
    """0 for a run that goes on or ended as it should."""
    return EXIT_FAILED if status.is_lost or status.record.state == "failed" else 0


def draw(status: "RunStatus", price: float | None) -> RenderableType:
    """What people see."""
    record = status.record
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in _facts(status, price):
        table.add_row(name, escape(value))
    return Group(Text.from_markup(f"[bold]{escape(record.run_id)}[/]  {_headline(status)}"), table)


def to_plain(status: "RunStatus", price: float | None) -> dict[str, Any]:
    """For machines."""
    last = status.last_result_at
    return {
        "run_id": status.record.run_id,
        "flow": status.record.flow,
        "state": "lost" if status.is_lost else status.record.state,
        "total": status.total,
        "done": status.done,
        "failed": status.failed,
        "failed_by_code": {code.value: count for code, count in status.failed_by_code.items()},
        "images_per_s": round(status.rate_per_s, 4),
        "eta_s": None if status.eta_s is None else round(status.eta_s),
        "workers": status.workers,
        "last_result_at": None if last is None else last.isoformat(timespec="milliseconds"),
        "holder": None if status.holder is None else status.holder.describe(),
        "cost_per_image": None if price is None else status.cost_per_image(price),
    }


def _headline(status: "RunStatus") -> str:
    if status.is_lost:
        return "[bold red]lost: it ended without a word; run it again to do what is missing[/]"
    style = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}[status.record.state]
    ended = "" if status.record.finished_at is None else f" after {format_span(status.record.seconds)}"
    return f"[bold {style}]{status.record.state}[/]{ended}"


def _facts(status: "RunStatus", price: float | None) -> list[tuple[str, str]]:
    total = "" if status.total is None else f" of {format_number(status.total)}"
    facts = [("items", f"{format_number(status.finished)}{total}: {status.done:,} done, {status.failed:,} failed")]
    facts += [
        (f"  {code.value}", f"{format_number(count)}: {explain(code.value).remedy}")
        for code, count in sorted(status.failed_by_code.items(), key=lambda entry: -entry[1])
    ]
    if status.is_running:
        left = "" if status.eta_s is None else f", {format_span(status.eta_s)} left"
        facts.append(
            ("speed", f"{format_decimal(status.rate_per_s)} images/s by {plural(status.workers, 'worker')}{left}")
        )
    if status.last_result_at is not None:
        facts.append(("last result", f"{_ago(status.last_result_at)} ago"))
    if status.holder is not None:
        facts.append(("held by", f"{status.holder.describe()}, heard of {_ago(status.holder.renewed_at)} ago"))
    if status.record.message:
        facts.append(("message", status.record.message))
    if price is not None:
        cost = status.cost_per_image(price)
        facts.append(("cost", "not known yet" if cost is None else f"{cost:.6f} an image"))
    return facts


def _ago(then: datetime | str) -> str:
    at = datetime.fromisoformat(then) if isinstance(then, str) else then
    return format_span(max((datetime.now(UTC) - at).total_seconds(), 0.0))
