"""What a run shows on its page in Prefect: progress, counts, a contact sheet and the way to the report."""

import base64
import contextvars
import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.evaluation_job import EvaluationSummary, format_figure
from flows.pairs_job import SOURCE_NAMES
from flows.progress import RunProgress
from tasks.inspection.feature_store import draw_subjects
from tasks.inspection.pairs_set import draw_pairs
from tasks.inspection.sheet import to_jpeg
from tasks.reports import SheetLayout, contact_sheet, read_figures, read_pictured_rows, summary_markdown
from tasks.reports.remedies import explain
from tasks.reports.wording import score_name
from tasks.storage import OutputFolder, RunOutput
from tasks.storage.locations import locate

if TYPE_CHECKING:
    from tasks.pairs.outcome import PairOutcome

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 3.0
SHEET_ITEMS = 12


class ProgressPublisher:
    """Keeps a progress artifact up to date, at most every `interval_s` seconds.

    A thread of its own talks to the server, so that a slow one never holds up the workers; only the latest progress
    waits to be sent. A server that does not answer costs a warning.
    """

    def __init__(self, key: str, interval_s: float = PROGRESS_INTERVAL_S) -> None:
        self._key = key
        self._interval_s = interval_s
        self._latest: RunProgress | None = None
        self._ended = threading.Event()
        self._artifact_id: UUID | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._publish_all,), name="progress-artifact")

    def __enter__(self) -> Self:
        try:
            created = create_progress_artifact(0.0, key=self._key, description="starting workers")
            self._artifact_id = cast("UUID", created)  # outside of an event loop it is no coroutine
        except httpx.HTTPError as error:
            logger.warning("The progress cannot be shown: %s", error)
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._artifact_id is not None:
            self._thread.join()

    def show(self, progress: RunProgress) -> None:
        """The progress to send next; returns at once."""
        self._latest = progress

    def _publish_all(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._publish()
        self._publish()

    def _publish(self) -> None:
        progress, self._latest = self._latest, None
        if progress is None or self._artifact_id is None:
            return
        try:
            update_progress_artifact(self._artifact_id, progress.percent, progress.describe())
        except httpx.HTTPError as error:
            logger.warning("The progress could not be sent: %s", error)


def publish_results(output: RunOutput, report_uri: str, title: str) -> None:
    """The table of counts and the markdown page with contact sheet and report, from what the output holds."""
    figures = read_figures(output)
    rows = [{"items": figures.num_done, "status": "done", "error code": "", "reason": ""}]
    rows += [
        {"items": count, "status": "failed", "error code": code, "reason": explain(code).title}
        for code, count in figures.failed_by_code.most_common()
    ]
    pictured = read_pictured_rows(output, SHEET_ITEMS)
    picture = contact_sheet(pictured, layout=SheetLayout(), max_items=SHEET_ITEMS) if pictured else None
    _publish_table("catalog-counts", rows, f"{title}: items by status and error code")
    _publish_page(
        "catalog-report",
        f"{title}: contact sheet and report",
        f"# {title}",
        _embed(picture, "No image has a preview."),
        summary_markdown(figures),
        f"Report: {link_to(report_uri)}",
    )


def publish_pairs(output: OutputFolder, outcome: "PairOutcome", card_uri: str, title: str) -> None:
    """The table of pairs by source and refusals by reason, and the markdown page with pairs and card."""
    rows: list[dict[str, Any]] = [
        {"pairs": source.built, "what": f"built of {SOURCE_NAMES.get(name, name)}", "wanted": source.wanted}
        for name, source in outcome.per_source.items()
    ]
    refused = sorted(outcome.refused.items(), key=lambda item: (-item[1], item[0]))
    rows += [{"pairs": count, "what": f"refused: {reason}", "wanted": ""} for reason, count in refused]
    sheet = draw_pairs(output)
    _publish_table("pairs-counts", rows, f"{title}: pairs by source, refusals by reason")
    _publish_page(
        "pairs-card",
        f"{title}: some pairs, and the card",
        f"# {title}",
        _embed(None if sheet is None else to_jpeg(sheet), "There is no pair."),
        f"{outcome.built:,} pairs, {sum(outcome.refused.values()):,} candidates refused.",
        f"Card: {link_to(card_uri)}",
    )


def publish_features(output: OutputFolder, tables: list[dict[str, str]], manifest_uri: str, title: str) -> None:
    """The store's tables with rows and bytes, and the markdown page with some subjects' features."""
    sheet = draw_subjects(output)
    _publish_table("features-tables", tables, f"{title}: rows and size by table")
    _publish_page(
        "features-sheet",
        f"{title}: features of some subjects",
        f"# {title}",
        _embed(None if sheet is None else to_jpeg(sheet), "The store holds no subject."),
        f"Manifest: {link_to(manifest_uri)}",
    )


def publish_evaluation(summary: EvaluationSummary, sheet: bytes | None) -> None:
    """The first table's lines with their intervals, and the markdown page with all tables and some images."""
    from tasks.evaluation.printing import to_markdown

    if summary.tables:
        first = summary.tables[0]
        rows = [
            {
                "line": row.title,
                "measure": score_name(name),
                "mean": format_figure(name, found.mean),
                "95 %": str(found),
            }
            for row in first.rows
            for name, found in row.means.items()
        ]
        _publish_table("evaluation-figures", rows, f"{summary.reference}: {first.table.title}")
    _publish_page(
        "evaluation-report",
        f"{summary.reference}: what it measures",
        f"# {summary.reference}",
        f"{summary.describe()}.",
        *(to_markdown(measured) for measured in summary.tables),
        _embed(sheet, "No images were made."),
        *([f"Evaluation: {link_to(summary.uri)}"] if summary.uri else []),
    )


def link_to(uri: str) -> str:
    """A location as a link in Markdown that shows the whole URI, a file's included.

    Prefect's newer pages keep the text of a link that does not begin with http and drop its target, so the text has to
    be what can be copied; its older pages keep both.
    """
    location = locate(uri)
    return f"<{location.scheme}://{quote(location.path)}>"


def _publish_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    create_table_artifact(rows, key=key, description=description)


def _publish_page(key: str, description: str, *paragraphs: str) -> None:
    create_markdown_artifact("\n\n".join(paragraphs), key=key, description=description)


def _embed(jpeg: bytes | None, otherwise: str) -> str:
    """A picture in the page itself, because pages of Prefect show others only from public addresses."""
    if jpeg is None:
        return otherwise
    return f"![Contact sheet](data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})"
