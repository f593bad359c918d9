"""What a training run shows on its page in Prefect: a table of measurements, charts and the newest sample sheet."""

import base64
import contextvars
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.publishing import link_to
from tasks.reports.wording import format_decimal

if TYPE_CHECKING:
    from tasks.reports.training import MeasuredStep
    from tasks.storage import OutputFolder

logger = logging.getLogger(__name__)


class MeasurementPublisher:
    """Publishes the page again after every measurement.

    A thread of its own reads the run's folder and talks to the server, so that neither ever holds up training. What
    goes wrong costs a warning: the next measurement, and the run's last stage, publish again.
    """

    def __init__(self, output: "OutputFolder", num_steps: int) -> None:
        self._output, self._num_steps = output, num_steps
        self._context = contextvars.copy_context()
        self._last: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training-page")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def notice(self) -> None:
        """There is a new measurement; returns at once. Several ones while the page is made count as one."""
        if self._last is None or self._last.done() or self._last.cancel():
            self._last = self._thread.submit(self._publish)

    def _publish(self) -> None:
        try:
            self._context.run(publish_training, self._output, self._num_steps)
        except Exception as error:  # noqa: BLE001 - a page is not worth a run
            logger.warning("The run's page could not be brought up to date: %s", error)


def publish_training(
    output: "OutputFolder", num_steps: int, *, adapter_uri: str = "", report_uri: str = "", state: str = ""
) -> None:
    """The table of measurements, and the markdown page with charts and the newest sample sheet."""
    from tasks.training.measurements import list_sheets, read_sheets
    from tasks.training.report import draw_measurements, read_run

    run = read_run(output, num_steps, max_sheets=0)
    if run.measured:
        rows = [_row(step) for step in run.measured]
        create_table_artifact(rows, key="training-measurements", description=f"{run.name}: measured on held-out pairs")
    figures, sheets = draw_measurements(run), read_sheets(output, list_sheets(output)[-1:])
    paragraphs = [f"# {run.name}", state or f"{run.num_done:,} of {num_steps:,} steps."]
    paragraphs.append(_embed("image/png", figures, "Loss and scores") if figures else "No step is logged yet.")
    for step, jpeg in sheets.items():
        paragraphs += [f"## Samples of step {step:,}", _embed("image/jpeg", jpeg, "Sample sheet")]
    paragraphs += [f"{name}: {link_to(uri)}" for name, uri in (("Adapter", adapter_uri), ("Report", report_uri)) if uri]
    create_markdown_artifact(
        "\n\n".join(paragraphs), key="training-report", description=f"{run.name}: loss, scores, samples"
    )


def _row(step: "MeasuredStep") -> dict[str, Any]:
    values = {"held-out loss": step.held_out_loss, "DINO": step.dino, "CLIP-T": step.clip_t}
    return {"step": step.step, **{name: format_decimal(value) for name, value in values.items()}}


def _embed(kind: str, picture: bytes, title: str) -> str:
    """A picture in the page itself, because pages of Prefect show others only from public addresses."""
    return f"![{title}](data:{kind};base64,{base64.b64encode(picture).decode()})"
