"""Reads an output's rows and run.json and writes report.html beside them."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from ezigen.config import ErrorCode
from tasks.catalog.results import ResultRow, from_batch
from tasks.reports.figures import Figures, count_rows, figure_columns
from tasks.reports.items import PageItems
from tasks.reports.page import render_page
from tasks.reports.selection import Choice, PageLimits, PictureBudget
from tasks.reports.survey import Survey, survey_columns
from tasks.storage.ledger import ResultsLedger
from tasks.storage.output import RunOutput


def write_report(output: RunOutput, limits: PageLimits | None = None) -> str:
    """Writes the report of everything the output holds and returns its location.

    Reads result rows and run.json, never an image. Memory does not grow with the number of rows beyond the ledger's
    30 bytes each. The page holds what `limits` allow, chosen by the rows alone: writing it again gives the same page.
    Raises ConfigurationError for a damaged shard or run.json.
    """
    limits = limits or PageLimits()
    ledger = ResultsLedger(output)
    survey = Survey(limits)
    for batch in merge_small(ledger.batches(columns=survey_columns())):
        survey.add(batch)
    items = _collect_items(ledger, survey.selection.choose(), limits)
    page = render_page(output_name(output), output.read_run(), survey, items)
    return output.write(output.report_path, page.encode())


def read_figures(output: RunOutput) -> Figures:
    """The figures of everything the output holds."""
    return count_rows(merge_small(ResultsLedger(output).batches(columns=figure_columns())))


def read_pictured_rows(output: RunOutput, num_rows: int) -> list[ResultRow]:
    """The first images in the catalog's order that have a preview strip, for a contact sheet."""
    rows: list[ResultRow] = []
    for batch in ResultsLedger(output).batches("done"):
        rows.extend(from_batch(batch.filter(pc.is_valid(batch.column("preview")))))
        rows = sorted(rows, key=lambda row: (row.row_index, row.item_key))[:num_rows]
    return rows


def merge_small(batches: Iterable[pa.RecordBatch], min_rows: int = 16_384) -> Iterator[pa.RecordBatch]:
    """The same rows in fewer batches: a run's shards are small, and every batch has a fixed cost."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(part) for part in waiting) >= min_rows:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def output_name(output: RunOutput) -> str:
    """What people call the output: the last part of its location."""
    return output.root_uri.rstrip("/").rpartition("/")[2] or output.root_uri


def _collect_items(ledger: ResultsLedger, choice: Choice, limits: PageLimits) -> PageItems:
    items = PageItems(choice.pictured, PictureBudget(limits.max_picture_bytes))
    for row in _listed_rows(ledger, choice):
        items.add(row)
    return items


def _listed_rows(ledger: ResultsLedger, choice: Choice) -> Iterator[ResultRow]:
    listed = pa.array(sorted(choice.listed), pa.string())
    for batch in ledger.batches():
        yield from from_batch(_known_codes_only(batch.filter(pc.is_in(batch.column("item_key"), listed))))


def _known_codes_only(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A code that another version wrote is left out here; the failures by reason count it under its own name."""
    codes = batch.column("error_code")
    known = pc.is_in(codes, pa.array([code.value for code in ErrorCode]))
    place = batch.schema.get_field_index("error_code")
    return batch.set_column(place, batch.schema.field(place), pc.if_else(known, codes, None))
