"""`ezigen results`: the resolved rows of an output as a table, CSV or JSON lines, one row at a time."""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO, cast

from ezigen.config import ConfigurationError, ErrorCode
from flows.terminal import err, out, print_table
from tasks.reports.remedies import explain
from tasks.reports.spreadsheet import write_csv
from tasks.reports.wording import format_number, plural

if TYPE_CHECKING:
    from tasks.catalog.results import ResultRow
    from tasks.reviews import ReviewState
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


def one_state(**wanted: bool) -> "ReviewState | None":
    """The state of review that is wanted, if any. Raises ConfigurationError for two of them."""
    names = [name for name, is_wanted in wanted.items() if is_wanted]
    if len(names) > 1:
        raise ConfigurationError(f"{' and '.join(f'--{name}' for name in names)} exclude each other; choose one.")
    return cast("ReviewState", names[0]) if names else None


@dataclass(frozen=True)
class Selection:
    """Rows of one status, error code and state of review; None takes all."""

    status: Status | None = None
    code: str | None = None
    state: "ReviewState | None" = None


def list_results(output: "RunOutput", wanted: Selection, *, form: Format, stream: TextIO | None = None) -> None:
    """Writes the wanted rows to the stream, standard output unless given.

    Raises ConfigurationError for an unknown code, and for failed rows in a state of review: they have no image.
    """
    if wanted.code is not None and wanted.code not in set(ErrorCode):
        raise ConfigurationError(f"--code {wanted.code!r} is unknown; use one of {', '.join(ErrorCode)}.")
    if wanted.state is not None and (wanted.status == "failed" or wanted.code is not None):
        raise ConfigurationError(f"--{wanted.state} lists images, and failed rows have none; leave one of the two out.")
    rows = _select(output, wanted)
    if wanted.state is not None:
        rows = _in_state(output, rows, wanted.state)
    if form == "table":
        _print_rows(output, rows)
    else:
        _write(rows, form, stream or sys.stdout)


def _select(output: "RunOutput", wanted: Selection) -> Iterator["ResultRow"]:
    from tasks.storage.ledger import ResultsLedger

    status: Status | None = "failed" if wanted.code is not None else wanted.status
    for row in ResultsLedger(output).rows(status, columns=(*COLUMNS, "image_sha256")):
        if wanted.code is None or row.error_code == wanted.code:
            yield row


def _in_state(output: "RunOutput", rows: Iterator["ResultRow"], state: "ReviewState") -> Iterator["ResultRow"]:
    from tasks.reviews import Reviews

    reviews = Reviews.of(output)
    for row in rows:
        if row.status == "done" and reviews.state(row.item_key, row.image_sha256) == state:
            yield row


def _write(rows: Iterable["ResultRow"], form: Format, stream: TextIO) -> None:
    if form == "csv":
        write_csv(stream, itertools.chain([COLUMNS], (to_plain(row).values() for row in rows)))
        return
    stream.writelines(json.dumps(to_plain(row), ensure_ascii=False) + "\n" for row in rows)


def to_plain(row: "ResultRow") -> dict[str, str | int | float | None]:
    """A row's listed columns as JSON values."""
    values = {name: getattr(row, name) for name in COLUMNS}
    values["finished_at"] = row.finished_at.isoformat(timespec="milliseconds")
    values["error_code"] = None if row.error_code is None else row.error_code.value
    return values


def _print_rows(output: "RunOutput", rows: Iterator["ResultRow"]) -> None:
    shown = list(itertools.islice(rows, MAX_TABLE_ROWS))
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
