"""CSV that people open in a spreadsheet, whoever wrote the texts in it."""

import csv
from collections.abc import Iterable
from typing import TextIO

# What makes Excel, LibreOffice or Google Sheets take a cell for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_csv(stream: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Writes rows; None is an empty cell. A text that a spreadsheet would run as a formula gets a `'` before it."""
    csv.writer(stream, lineterminator="\n").writerows(map(_to_cell, row) for row in rows)


def _to_cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
