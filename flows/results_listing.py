"""`ezigen results`: the resolved rows of an output as a table, CSV or JSON lines, one row at a time."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal, TextIO

from ezigen.config import ConfigurationError, ErrorCode
from flows.terminal import err, out, print_table
from tasks.reports.remedies import explain
from tasks.reports.wording import format_number, plural

if TYPE_CHECKING:
    from tasks.catalog.results import ResultRow
    from tasks.storage import RunOutput

Status = Literal["done", "failed"]
Format = Literal["table", "csv", "jsonl"]

COLUMNS = (
    "item_id",
    "status",
    "error_code",
    "error_message",
    "image_uri",
    "num_loops",
    "stop_reason",
    "seconds",
    "attempts",
    "prompt",
    "subject_uri",
    "subject_class",
    "seed",
    "item_key",
    "run_id",
    "finished_at",
)
MAX_TABLE_ROWS = 200
MAX_MESSAGE_CHARS = 100


def list_results(
    output: "RunOutput", *, status: Status | None, code: str | None, form: Format, stream: TextIO | None = None
) -> None:
    """Writes the rows of one status and error code to the stream, standard output unless given.

    Raises ConfigurationError for an unknown code.
    """
    if code is not None and code not in set(ErrorCode):
        raise ConfigurationError(f"--code {code!r} is unknown; use one of {', '.join(ErrorCode)}.")
    rows = _select(output, status, code)
    if form == "table":
        _print_rows(output, rows)
    else:
        _write(rows, form, stream or sys.stdout)


def _select(output: "RunOutput", status: Status | None, code: str | None) -> Iterator["ResultRow"]:
    from tasks.storage.ledger import ResultsLedger

    wanted: Status | None = "failed" if code is not None else status
    for row in ResultsLedger(output).rows(wanted, columns=COLUMNS):
        if code is None or row.error_code == code:
            yield row


def _write(rows: Iterable["ResultRow"], form: Format, stream: TextIO) -> None:
    if form == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(["" if value is None else value for value in to_plain(row).values()] for row in rows)
        return
    stream.writelines(json.dumps(to_plain(row), ensure_ascii=False) + "\n" for row in rows)


def to_plain(row: "ResultRow") -> dict[str, str | int | float | None]:
    """A row's listed columns as JSON values."""
    values = {name: getattr(row, name) for name in COLUMNS}
    values["finished_at"] = row.finished_at.isoformat(timespec="milliseconds")
    values["error_code"] = None if row.error_code is None else row.error_code.value
    return values


def _print_rows(output: "RunOutput", rows: Iterator["ResultRow"]) -> None:
    shown = list(islice(rows, MAX_TABLE_ROWS))
    if not shown:
        err.print("No such rows.")
        return
    print_table(("item_id", "status", "what"), ([row.item_id, row.status, _what(output, row)] for row in shown))
    hidden = sum(1 for _ in rows)
    if hidden:
        out.print(f"... and {format_number(hidden)} more; --format csv or jsonl lists all of them")
    for code in dict.fromkeys(row.error_code for row in shown if row.error_code is not None):
        num_rows = sum(row.error_code == code for row in shown)
        out.print(f"\n[bold]{code.value}[/] ({plural(num_rows, 'row')}): {explain(code).remedy}")


def _what(output: "RunOutput", row: "ResultRow") -> str:
    if row.status == "done":
        return output.uri(row.image_uri or "")
    message = row.error_message or ""
    cut = message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"
    return f"{row.error_code}: {cut}"
