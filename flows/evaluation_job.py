"""What a published adapter is measured by at the end of a pipeline. Needs no Prefect."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from flows.job import Job, Summary
from flows.parameters import EvaluationParameters
from flows.progress import RunProgress
from flows.stopping import drain_on_signals
from flows.terminal import out, print_table
from tasks.reports.wording import format_decimal, plural
from tasks.storage import Locations, OutputFolder

if TYPE_CHECKING:
    from tasks.adapters import PublishedAdapter
    from tasks.training.evaluation import Evaluation

_SHARES = ("product", "scene", "variant")
_TOLD = ("product", "scene", "dino", "clip_t")


class _Stopped(Exception):  # noqa: N818 - no error
    """Raised between two batches of images, because the run was asked to stop."""


@dataclass(frozen=True)
class EvaluationSummary(Summary):
    """What was measured of a version; without an evaluation what training measured last."""

    reference: str
    evaluation: "Evaluation | None" = None
    training_metrics: Mapping[str, float] | None = None
    made: bool = False
    """Whether this run has measured it."""
    uri: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.stopped_by is not None

    def describe(self) -> str:
        """toys@v1, 16 images of products never seen: product right 50 %, scene right 100 %, DINO 0.49, CLIP-T 0.78."""
        if self.stopped:
            return f"{self.reference} is not measured; run again to continue"
        if self.evaluation is None:
            measured = (self.training_metrics or {}).items()
            known = ", ".join(f"{_title(name)} {format_decimal(value)}" for name, value in measured)
            return f"{self.reference}, as training measured it last: {known or 'nothing'}"
        numbers = self.evaluation.numbers()
        said = ", ".join(f"{_title(name)} {format_figure(name, numbers[name])}" for name in _TOLD if name in numbers)
        images = plural(self.evaluation.num_images, "image")
        text = f"{self.reference}, {images} of products that nothing was trained on: {said}"
        return text if self.made else f"nothing to do: {text}"

    def print_details(self) -> None:
        """The figures with their intervals, and where they are stored."""
        if self.evaluation is not None:
            rows = [(title, *values) for title, *values in figure_cells(self.evaluation)]
            print_table(("measure", "mean", "95 % interval"), rows)
        if self.uri:
            out.print(f"evaluation: {escape(self.uri)}")


class EvaluationJob(Job):
    """The evaluation of one version, in a folder that the caller holds; it generates in this process."""

    artifact_prefix = "evaluation"

    def __init__(self, parameters: EvaluationParameters, storage_options: Mapping[str, Any]) -> None:
        self._locations = Locations(storage_options=storage_options)
        inputs = parameters.inputs
        super().__init__(OutputFolder(inputs.output_uri, self._locations), parameters.cluster, inputs.if_busy)
        self.parameters = parameters
        self.evaluation: Evaluation | None = None
        self._adapter: PublishedAdapter | None = None
        self._digest = ""
        self._made = False

    @property
    def adapter(self) -> "PublishedAdapter":
        """The version, after `make_plan`."""
        if self._adapter is None:
            raise RuntimeError("the plan has not been made yet")
        return self._adapter

    @property
    def name(self) -> str:
        """What people call the run."""
        return self.parameters.inputs.adapter

    def make_plan(self) -> str:
        """Looks for what was measured before; returns in words what is to do."""
        from tasks.adapters import Registry
        from tasks.training.evaluation import evaluation_digest, read_evaluation

        wanted = self.parameters
        self._adapter = Registry(wanted.inputs.adapters_uri, self._locations).resolve(wanted.inputs.adapter)
        why = self._why_not()
        if why:
            return f"{self.adapter.reference}: {why}, so the last measurement of training is shown"
        self._digest = evaluation_digest(self.adapter, wanted.model, wanted.evaluation)
        self.evaluation = read_evaluation(self.output, self.adapter, self._digest)
        images = f"{plural(self._num_images(), 'image')} of {plural(wanted.evaluation.num_products, 'product')}"
        return f"{self.adapter.reference}: {images} " + ("to make" if self.evaluation is None else "measured before")

    def work(self, on_progress: Callable[[RunProgress], None]) -> None:
        """Makes and measures the images, if they have not been; see Job."""
        from tasks.training.evaluation import evaluate_adapter

        if self.evaluation is not None or not self._digest:
            return
        wanted, started_s, total = self.parameters, time.monotonic(), self._num_images()

        def tell(done: int) -> None:
            rate = done / max(time.monotonic() - started_s, 1e-3)
            eta_s = (total - done) / rate
            on_progress(RunProgress("images", total, done, ended=done, rate_per_s=rate, eta_s=eta_s))
            self.lease.check()
            if self.stop.is_made:
                raise _Stopped

        try:
            with drain_on_signals(self.stop):
                self.evaluation = evaluate_adapter(
                    self.adapter,
                    wanted.model,
                    wanted.evaluation,
                    self.output,
                    digest=self._digest,
                    adapters_uri=wanted.inputs.adapters_uri,
                    locations=self._locations,
                    tell=tell,
                )
                self._made = True
        except _Stopped:
            return

    def read_sheet(self) -> bytes | None:
        """The sheet of the images, a JPEG; None if nothing was measured."""
        from tasks.training.evaluation import evaluation_path

        return None if self.evaluation is None else self.output.read(evaluation_path(self.adapter, "jpg"))

    def summarize(self) -> EvaluationSummary:
        """The end of the run, after `work`."""
        from tasks.training.evaluation import evaluation_path

        is_measured = self.evaluation is not None
        return EvaluationSummary(
            reference=self.adapter.reference,
            evaluation=self.evaluation,
            training_metrics=self.adapter.card.metrics,
            made=self._made,
            uri=self.output.uri(evaluation_path(self.adapter, "json")) if is_measured else "",
            stopped_by=None if is_measured else self.stop.signal_number,
        )

    def _why_not(self) -> str:
        """Why nothing can be measured, or ""."""
        from tasks.training.evaluation import can_evaluate

        if not can_evaluate(self.parameters.model):
            return f"nobody knows products that {self.parameters.model.model} never saw"
        return "" if self.parameters.evaluation.num_products else "evaluation.num_products is 0"

    def _num_images(self) -> int:
        from ezigen.mini.held_out import num_images

        return num_images(self.parameters.evaluation)


def format_figure(name: str, value: float) -> str:
    """A share as percent, a score as it is."""
    return f"{100 * value:.0f} %" if name in _SHARES else format_decimal(value)


def figure_cells(evaluation: "Evaluation") -> list[tuple[str, str, str]]:
    """Measure, mean and interval of every figure, for people."""
    return [
        (_title(name), format_figure(name, mean), f"{format_figure(name, low)} to {format_figure(name, high)}")
        for name, (mean, low, high) in evaluation.figures.items()
    ]


def _title(name: str) -> str:
    from tasks.training.evaluation import measure_title
    from tasks.training.measurements import LOSS, measure_name

    return measure_name(name) if name == LOSS else measure_title(name)
