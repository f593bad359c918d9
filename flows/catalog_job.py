"""One catalog run, from the lease to the report: what the stages of the flow work on. Needs no Prefect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from flows.job import Job, Summary, UnfinishedRun
from flows.parameters import CatalogParameters
from flows.planning import make_plan, pin_adapter
from flows.progress import RunProgress
from flows.stopping import drain_on_signals
from flows.terminal import out, print_table
from tasks.reports.remedies import explain
from tasks.reports.wording import format_decimal, format_span, plural
from tasks.storage import Locations, RunOutput

if TYPE_CHECKING:
    from tasks.catalog.outcome import RunOutcome
    from tasks.catalog.plan import CatalogPlan
    from tasks.catalog.progress import Progress

__all__ = ["CatalogJob", "CatalogSummary", "UnfinishedRun", "describe_plan", "print_plan"]

MAX_REFUSALS = 20


@dataclass(frozen=True)
class CatalogSummary(Summary):
    """What a run made, and what the output holds altogether."""

    outcome: "RunOutcome"
    done_before: int
    failed_before: int
    postponed: int
    report_uri: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.outcome.stopped

    def describe(self) -> str:
        """32 done, 4 failed; for a finished run: nothing to do: 32 done, 4 failed before."""
        if self.outcome.nothing_to_do:
            failed = f", {self.failed_before:,} failed" if self.failed_before else ""
            return f"nothing to do: {self.done_before:,} done{failed} before"
        text = f"{self.outcome.done:,} done, {self.outcome.failed:,} failed"
        left = self.outcome.total - self.outcome.done - self.outcome.failed
        return f"{text}, {left:,} left; run again to continue" if self.outcome.stopped else text

    def print_details(self) -> None:
        """Reasons of failures, speed, and where the report is."""
        outcome = self.outcome
        if outcome.failed_by_code:
            rows = [(f"{number:,}", code.value, explain(code).title) for code, number in outcome.failed_by_code.items()]
            print_table(("failed", "code", ""), rows)
        if outcome.done and outcome.seconds_per_image is not None:
            out.print(
                f"{format_span(outcome.seconds)} in all: {format_decimal(outcome.seconds_per_image)} seconds per "
                f"image, {format_decimal(outcome.done / outcome.seconds)} images/s"
            )
        if self.postponed:
            out.print(f"{self.postponed:,} left for later runs (limit)")
        if self.report_uri:
            out.print(f"report: {escape(self.report_uri)}")


class CatalogJob(Job):
    """A catalog run on an output that the caller holds."""

    artifact_prefix = "catalog"
    output: RunOutput

    def __init__(self, parameters: CatalogParameters, storage_options: Mapping[str, Any]) -> None:
        inputs = parameters.inputs
        output = RunOutput(inputs.output_uri, Locations(storage_options=storage_options))
        super().__init__(output, parameters.cluster, inputs.if_busy)
        self.parameters = parameters
        self.report_uri = ""
        self._storage_options = storage_options
        self._plan: CatalogPlan | None = None
        self._outcome: RunOutcome | None = None

    @property
    def plan(self) -> "CatalogPlan":
        """The plan, after `make_plan`."""
        if self._plan is None:
            raise RuntimeError("the plan has not been made yet")
        return self._plan

    def make_plan(self) -> str:
        """Reads the catalog and the results; returns the counts in words. From here on an alias is one version."""
        self.parameters = pin_adapter(self.parameters, self._storage_options)
        self._plan = make_plan(self.parameters, self._storage_options)
        return describe_plan(self._plan)

    def work(self, on_progress: Callable[[RunProgress], None]) -> None:
        """Makes the images that the plan says are missing; see Job."""
        from tasks.catalog.outcome import TooManyFailures
        from tasks.catalog.run import run_catalog

        wanted = self.parameters
        try:
            with drain_on_signals(self.stop):
                self._outcome = run_catalog(
                    self.plan,
                    self.output,
                    inputs=wanted.inputs,
                    model=wanted.model,
                    sampler=wanted.sampler,
                    cluster=wanted.cluster,
                    lease=self.lease,
                    on_progress=lambda progress: on_progress(to_run_progress(progress)),
                    stop=self.stop.event,
                )
        except TooManyFailures as error:
            self._outcome, self.failure = error.outcome, str(error)

    def write_report(self) -> str:
        """Writes report.html beside the results and returns its location."""
        from tasks.reports import write_report

        self.report_uri = write_report(self.output)
        return self.report_uri

    def summarize(self) -> CatalogSummary:
        """The end of the run, after `generate`."""
        if self._outcome is None:
            raise RuntimeError("nothing has been generated yet")
        counts = self.plan.counts
        return CatalogSummary(
            outcome=self._outcome,
            done_before=counts.done,
            failed_before=counts.failed_before,
            postponed=counts.postponed,
            report_uri=self.report_uri,
            failure=self.failure,
            stopped_by=self.stop.signal_number if self._outcome.stopped else None,
        )


def to_run_progress(progress: "Progress") -> RunProgress:
    """The progress of a catalog run in the words of every run: a failed image is an ended one."""
    return RunProgress(
        unit="images",
        total=progress.total,
        done=progress.done,
        lost=progress.failed,
        ended=progress.finished,
        rate_per_s=progress.rate_per_s,
        eta_s=progress.eta_s,
    )


def describe_plan(plan: "CatalogPlan") -> str:
    """36 rows: 32 to do, 0 done before, 4 refused."""
    counts = plan.counts
    parts = [f"{counts.to_do:,} to do", f"{counts.done:,} done before"]
    if counts.failed_before:
        parts.append(f"{counts.failed_before:,} failed before")
    if counts.refused:
        parts.append(f"{counts.refused:,} refused")
    return f"{plural(counts.rows, 'row')}: {', '.join(parts)}"


def print_plan(plan: "CatalogPlan") -> None:
    """The plan's counts and cost, and the first refused rows."""
    print_table(("", ""), plan.describe())
    refusals = list(islice(plan.refusals(), MAX_REFUSALS))
    if refusals:
        out.print("\n[bold]refused[/]")
        print_table(
            ("row", "item_id", "why"),
            ((str(r.index + 1), r.item_id, f"{r.code.value}: {r.message}") for r in refusals),
        )
    if plan.counts.refused > len(refusals):
        out.print(f"... and {plan.counts.refused - len(refusals):,} more; the run lists them all in its results")
