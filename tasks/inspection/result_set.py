"""The output of a catalog run, and one item of it."""

import re
from collections import Counter
from collections.abc import Iterator

from ezigen.config import ConfigurationError
from tasks.catalog.results import RESULTS_SCHEMA, ResultRow
from tasks.inspection.near import find_id
from tasks.inspection.run_facts import run_facts
from tasks.inspection.sheet import Cell, draw_sheet, to_png
from tasks.inspection.view import SavedPicture, View, counts_table, schema_table
from tasks.reports import contact_sheet, read_figures, read_pictured_rows
from tasks.reports.contact_sheet import split_strip
from tasks.storage import ResultsLedger, RunOutput

SHEET_ITEMS = 12
ITEM_PX = 192
_KEY_START = re.compile("[0-9a-f]{4,32}")


def inspect_results(output: RunOutput) -> View:
    """Counts by status and error code, fingerprints, the schema, and a contact sheet."""
    figures = read_figures(output)
    shards = output.list_results()
    facts = [
        ("kind", "output of personalize_catalog"),
        ("location", output.root_uri),
        ("images", f"{figures.num_done:,} done, {figures.num_failed:,} failed"),
        ("shards", f"{len(shards):,}, {sum(shard.num_bytes for shard in shards):,} bytes"),
        *run_facts(output.read_run()),
    ]
    tables = [schema_table("columns of results", RESULTS_SCHEMA)]
    if figures.failed_by_code:
        codes = Counter({str(code): count for code, count in figures.failed_by_code.items()})
        tables.insert(0, counts_table("failed", "error code", codes))
    rows = read_pictured_rows(output, SHEET_ITEMS)
    pictures = (SavedPicture("contact-sheet.jpg", contact_sheet(rows)),) if rows else ()
    return View(f"results at {output.root_uri}", tuple(facts), tuple(tables), pictures)


def inspect_result(output: RunOutput, wanted: str) -> View:
    """One item, by its id or its key: its row, and its pictures from the product to the result."""
    ledger = ResultsLedger(output)

    def ids() -> Iterator[str]:
        yield from (row.item_id for row in ledger.rows(columns=["item_id"]))
        if _KEY_START.fullmatch(wanted):
            yield from (row.item_key for row in ledger.rows(columns=["item_key"]))

    found = find_id(wanted, ids(), "item", output.root_uri)
    row = next((row for row in ledger.rows() if found in (row.item_id, row.item_key)), None)
    if row is None:
        raise ConfigurationError(f"{output.root_uri}: {found} has vanished while it was read; try again.")
    pictures: tuple[SavedPicture, ...] = ()
    if row.preview and row.preview_panels:
        panels = split_strip(row)
        cell = Cell(tuple(panels), (row.item_id, row.prompt))
        sheet = draw_sheet([cell], picture_px=ITEM_PX, num_columns=1)
        pictures = (SavedPicture(f"item-{row.item_key}.png", to_png(sheet)),)
    return View(f"item {row.item_id}", tuple(_facts(output, row)), pictures=pictures)


def _facts(output: RunOutput, row: ResultRow) -> Iterator[tuple[str, str]]:
    for name in RESULTS_SCHEMA.names:
        value = getattr(row, name)
        if name in ("preview", "preview_panels") or value in (None, "", (), {}):
            continue
        yield name, output.uri(value) if name == "image_uri" else str(value)
