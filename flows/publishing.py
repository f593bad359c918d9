"""What a run shows on its page in Prefect: progress, counts, a contact sheet and the way to the report."""

import base64
import contextvars
import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.terminal import describe_counts, describe_speed
from tasks.reports import SheetLayout, contact_sheet, read_figures, read_pictured_rows, summary_markdown
from tasks.reports.remedies import explain
from tasks.storage import RunOutput

if TYPE_CHECKING:
    from tasks.catalog.progress import Progress

logger = logging.getLogger(__name__)

PROGRESS_KEY, COUNTS_KEY, REPORT_KEY = "catalog-progress", "catalog-counts", "catalog-report"
PROGRESS_INTERVAL_S = 3.0
SHEET_ITEMS = 12


class ProgressPublisher:
    """Keeps a progress artifact up to date, at most every `interval_s` seconds.

    A thread of its own talks to the server, so that a slow one never holds up the workers; only the latest progress
    waits to be sent. A server that does not answer costs a warning.
    """

    def __init__(self, interval_s: float = PROGRESS_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._latest: Progress | None = None
        self._ended = threading.Event()
        self._artifact_id: UUID | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._publish_all,), name="progress-artifact")

    def __enter__(self) -> Self:
        try:
            created = create_progress_artifact(0.0, key=PROGRESS_KEY, description="starting workers")
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

    def show(self, progress: "Progress") -> None:
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
        finished = progress.done + progress.failed
        percent = 100.0 * finished / progress.total if progress.total else 100.0
        description = ", ".join(part for part in (describe_counts(progress), describe_speed(progress)) if part)
        try:
            update_progress_artifact(self._artifact_id, percent, description)
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
    create_table_artifact(rows, key=COUNTS_KEY, description=f"{title}: items by status and error code")
    page = "\n\n".join((f"# {title}", _sheet_markdown(output), summary_markdown(figures), f"Report: `{report_uri}`"))
    create_markdown_artifact(page, key=REPORT_KEY, description=f"{title}: contact sheet and report")


def _sheet_markdown(output: RunOutput) -> str:
    rows = read_pictured_rows(output, SHEET_ITEMS)
    if not rows:
        return "No image has a preview."
    picture = contact_sheet(rows, layout=SheetLayout(), max_items=SHEET_ITEMS)
    return f"![Contact sheet](data:image/jpeg;base64,{base64.b64encode(picture).decode()})"
