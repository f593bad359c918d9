"""One run of train_adapter, from the lease to the published version: what its stages work on. Needs no Prefect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ezigen.config import ConfigurationError
from flows.job import Job, Summary
from flows.parameters import TrainingParameters
from flows.progress import RunProgress
from flows.stopping import drain_on_signals
from flows.terminal import out, print_table
from tasks.reports.wording import format_decimal, format_span, plural
from tasks.storage import Locations, OutputFolder

if TYPE_CHECKING:
    from tasks.adapters import PublishedAdapter
    from tasks.storage.lease import Lease
    from tasks.training.measurements import Measurement
    from tasks.training.outcome import TrainingOutcome, TrainingProgress
    from tasks.training.plan import TrainingPlan

_PHASES = {
    "starting": "starting workers",
    "restarting": "workers were lost, starting again",
    "resizing": "starting again with another number of workers",
    "measuring": "measuring",
}
CHARTS = "figures.png"
"""Published beside the weights, as is the last sample sheet."""


@dataclass(frozen=True)
class TrainingSummary(Summary):
    """What came of a run, and as which version it was published; empty if it was not."""

    outcome: "TrainingOutcome"
    published: str = ""
    published_uri: str = ""
    alias: str = ""
    report_uri: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.outcome.stopped

    def describe(self) -> str:
        """20,000 steps, loss 0.081; step 20,000: held-out loss 0.103, CLIP-T 0.31, DINO 0.69; published as mini@v3."""
        outcome = self.outcome
        if outcome.stopped:
            return f"{outcome.step:,} of {plural(outcome.num_steps, 'step')} done; run again to continue"
        said = [
            plural(outcome.step, "step") + ("" if outcome.loss is None else f", loss {format_decimal(outcome.loss)}")
        ]
        if outcome.measurements and outcome.measurements[-1].numbers():
            said.append(outcome.measurements[-1].describe())
        if self.published:
            said.append(f"published as {self.published}" + (f" ({self.alias})" if self.alias else ""))
        text = "; ".join(said)
        return f"nothing to do: {text} before" if outcome.nothing_to_do else text

    def print_details(self) -> None:
        """Measurements, speed, and where the version and the report are."""
        outcome = self.outcome
        if outcome.measurements:
            print_table(("step", "held-out loss", "DINO", "CLIP-T"), measurement_cells(outcome.measurements))
        if outcome.steps_made and outcome.seconds:
            rate = format_decimal(outcome.samples_per_s)
            out.print(f"{plural(outcome.steps_made, 'step')} in {format_span(outcome.seconds)}: {rate} samples/s")
        if self.published_uri:
            out.print(f"adapter: {escape(self.published_uri)}")
        if self.report_uri:
            out.print(f"report: {escape(self.report_uri)}")


class TrainingJob(Job):
    """A run of train_adapter on a folder that the caller holds. `on_measured` is called after every measurement."""

    artifact_prefix = "training"

    def __init__(
        self,
        parameters: TrainingParameters,
        storage_options: Mapping[str, Any],
        on_measured: Callable[[], None] = lambda: None,
    ) -> None:
        self._locations = Locations(storage_options=storage_options)
        inputs = parameters.inputs
        super().__init__(OutputFolder(inputs.output_uri, self._locations), parameters.cluster, inputs.if_busy)
        self.parameters = parameters
        self.on_measured = on_measured
        self.report_uri = ""
        self._published: PublishedAdapter | None = None
        self._alias = ""
        self._plan: TrainingPlan | None = None
        self._outcome: TrainingOutcome | None = None

    @property
    def plan(self) -> "TrainingPlan":
        """The plan, after `make_plan`."""
        if self._plan is None:
            raise RuntimeError("the plan has not been made yet")
        return self._plan

    @property
    def outcome(self) -> "TrainingOutcome":
        """What came of the run, after `work`."""
        if self._outcome is None:
            raise RuntimeError("nothing has been trained yet")
        return self._outcome

    def hold_output(self) -> "Lease":
        """The lease on the run's own folder, whose name follows from everything that decides the weights."""
        self.output = self.look_at_plan().output
        return super().hold_output()

    def look_at_plan(self, check: Callable[[], None] = lambda: None) -> "TrainingPlan":
        """The plan, which writes nothing."""
        from tasks.training.plan import plan_training

        wanted = self.parameters
        return plan_training(wanted.inputs, wanted.training, wanted.model, self._locations, check=check)

    def make_plan(self) -> str:
        """Reads the store's index and what the run's folder holds; returns the counts in words."""
        plan = self.look_at_plan(self.lease.check)
        if plan.output.root != self.output.root:
            raise ConfigurationError(
                f"what decides the weights has changed since the run {self.name} was begun (features, model or initial "
                "adapter); run again, which begins another one."
            )
        self._plan = plan
        return describe_plan(plan)

    def work(self, on_progress: Callable[[RunProgress], None]) -> None:
        """Makes the steps that are missing; see Job. A run that diverges is remembered as failed."""
        from ezigen.training import TrainingDiverged
        from tasks.training.run import run_training

        try:
            with drain_on_signals(self.stop):
                self._outcome = run_training(
                    self.plan,
                    self.output,
                    cluster=self.parameters.cluster,
                    monitoring=self.parameters.monitoring,
                    locations=self._locations,
                    lease=self.lease,
                    on_progress=self._listen(on_progress),
                    stop=self.stop.event,
                )
        except TrainingDiverged as error:
            self.failure = str(error)
            self._outcome = self._read_outcome(error.step - 1)

    def finish(self) -> str:
        """Publishes the weights of a finished run and writes its report; returns the report's location."""
        from tasks.training.report import write_report

        if not self.failure:
            self._published = self._publish()
        self.report_uri = write_report(self.output, self.plan.num_steps, published=self.published)
        return self.report_uri

    @property
    def published(self) -> str:
        """NAME@VERSION of the published adapter; empty before, and if there is none."""
        return self._published.reference if self._published else ""

    def summarize(self) -> TrainingSummary:
        """The end of the run, after `work`."""
        return TrainingSummary(
            outcome=self.outcome,
            published=self.published,
            published_uri=self._published.uri if self._published else "",
            alias=self._alias,
            report_uri=self.report_uri,
            failure=self.failure,
            stopped_by=self.stop.signal_number if self.outcome.stopped else None,
        )

    def _listen(self, on_progress: Callable[[RunProgress], None]) -> Callable[["TrainingProgress"], None]:
        was_measuring = False

        def listen(progress: "TrainingProgress") -> None:
            nonlocal was_measuring
            on_progress(to_run_progress(progress, self.plan.config.batch_size))
            if was_measuring and progress.phase != "measuring":
                self.on_measured()
            was_measuring = progress.phase == "measuring"

        return listen

    def _read_outcome(self, step: int) -> "TrainingOutcome":
        """The outcome of a run that ended by an error after this step."""
        from tasks.training.measurements import read_measurements
        from tasks.training.outcome import TrainingOutcome

        record, plan = self.output.read_run(), self.plan
        return TrainingOutcome(
            run_id=record.run_id if record else "",
            state="failed",
            run=plan.run,
            run_uri=self.output.root_uri,
            step=step,
            num_steps=plan.num_steps,
            measurements=tuple(read_measurements(self.output)),
        )

    def _publish(self) -> "PublishedAdapter":
        """The next version, figures and the last sample sheet beside the weights; the same one if it was before."""
        from tasks.adapters import Registry
        from tasks.adapters.files import SHEET_FILE
        from tasks.training.measurements import list_sheets, read_sheets
        from tasks.training.plan import FINAL
        from tasks.training.report import draw_measurements, read_run

        figures = draw_measurements(read_run(self.output, self.plan.num_steps, max_sheets=0))
        if figures is not None:
            self.output.write(f"{FINAL}/{CHARTS}", figures)
        for jpeg in read_sheets(self.output, list_sheets(self.output)[-1:]).values():
            self.output.write(f"{FINAL}/{SHEET_FILE}", jpeg)
        inputs = self.parameters.inputs
        final = OutputFolder(self.output.uri(FINAL), self._locations)
        registry = Registry(inputs.adapters_uri, self._locations)
        measured = self.outcome.measurements
        metrics = measured[-1].numbers() if measured else {}
        made = registry.publish(inputs.name, final, run=self.plan.digest, alias=inputs.alias, metrics=metrics)
        # A version that was published before may have lost the alias to a later one since.
        pointing = [alias for alias, record in registry.aliases(inputs.name).items() if record.version == made.version]
        self._alias = inputs.alias if inputs.alias in pointing else ""
        return made


def check_early(parameters: TrainingParameters) -> None:
    """Finds most mistakes within a second, before a server or Ray is started: the model and the feature store.

    Raises ConfigurationError. A store whose keys are in a Prefect block is looked at later, when there is a server.
    """
    from ezigen.models import model_fingerprint
    from tasks.training.plan import check_dtype

    check_dtype(parameters.training, parameters.model)
    model_fingerprint(parameters.model.model)
    inputs = parameters.inputs
    if inputs.storage_block:
        return
    store = OutputFolder(inputs.features_uri)
    if "manifest.json" not in store.list(""):
        raise ConfigurationError(
            f"inputs.features_uri: {store.root_uri} holds no finished feature store (no manifest.json); check the "
            "path, or finish the store with `ezigen features`."
        )


def to_run_progress(progress: "TrainingProgress", batch_size: int) -> RunProgress:
    """The progress of training in the words of every run: steps, and beside them loss and samples."""
    said = [] if progress.loss is None else [f"loss {format_decimal(progress.loss)}"]
    if progress.samples_per_s:
        said.append(f"{format_decimal(progress.samples_per_s)} samples/s")
    if progress.phase in _PHASES:
        said.append(_PHASES[progress.phase])
    return RunProgress(
        unit="steps",
        total=progress.num_steps,
        done=progress.step,
        ended=progress.step,
        rate_per_s=progress.samples_per_s / batch_size,
        eta_s=progress.eta_s,
        note=", ".join(said),
    )


def describe_plan(plan: "TrainingPlan") -> str:
    """20,000 steps of 32 samples (2 epochs of 320,000); continues after step 1,500."""
    samples = sum(plan.num_samples.values())
    text = (
        f"{plural(plan.num_steps, 'step')} of {plural(plan.config.batch_size, 'sample')} "
        f"({format_decimal(plan.num_epochs)} epochs of {samples:,}), {plural(plan.num_held_out, 'pair')} held out"
    )
    if plan.finished:
        return f"{text}; all done before"
    return f"{text}; continues after step {plan.checkpoint_step:,}" if plan.checkpoint_step else text


def measurement_cells(measurements: "tuple[Measurement, ...]") -> list[tuple[str, ...]]:
    """Step, held-out loss, DINO, CLIP-T of every measurement, for a terminal."""
    return [
        (f"{m.step:,}", *(format_decimal(value) for value in (m.held_out_loss, m.dino, m.clip_t))) for m in measurements
    ]
