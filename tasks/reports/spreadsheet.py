"""CSV that people open in a spreadsheet, whoever wrote the texts in it."""

import csv
from collections.abc import Iterable
from typing import TextIO

# What makes Excel, LibreOffice or Google Sheets take a cell for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_csv(stream: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Writes rows; None is an empty cell. A text that a spreadsheet would run as a formula gets a `'` before it, and
    every line break within a text is a line feed.
    """
    csv.writer(stream, lineterminator="\n").writerows(map(_to_cell, row) for row in rows)


def _to_cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    # The writer leaves a carriage return without quotes, and readers end the row there.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(_FORMULA) else text
