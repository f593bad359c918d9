"""One catalog run, from the lease to the report: what the stages of the flow work on. Needs no Prefect."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.parameters import CatalogParameters
from flows.planning import make_plan
from flows.stopping import StopRequest, drain_on_signals
from flows.terminal import describe_plan
from tasks.storage import Locations, RunOutput

if TYPE_CHECKING:
    from tasks.catalog.outcome import RunOutcome
    from tasks.catalog.plan import CatalogPlan
    from tasks.catalog.progress import Progress
    from tasks.storage.lease import Lease

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogSummary:
    """What a run made, and what the output holds altogether. `stopped_by` is the number of a signal."""

    outcome: "RunOutcome"
    done_before: int
    failed_before: int
    postponed: int
    report_uri: str = ""
    failure: str = ""
    stopped_by: int | None = None

    def describe(self) -> str:
        """32 done, 4 failed; for a finished run: nothing to do: 32 done, 4 failed before."""
        if self.outcome.nothing_to_do:
            failed = f", {self.failed_before:,} failed" if self.failed_before else ""
            return f"nothing to do: {self.done_before:,} done{failed} before"
        text = f"{self.outcome.done:,} done, {self.outcome.failed:,} failed"
        left = self.outcome.total - self.outcome.done - self.outcome.failed
        return f"{text}, {left:,} left; run again to continue" if self.outcome.stopped else text


class UnfinishedRun(RuntimeError):  # noqa: N818
    """The run was stopped, or too many of its items failed. What is done is stored; the summary has the numbers."""

    def __init__(self, message: str, summary: CatalogSummary) -> None:
        super().__init__(message)
        self.summary = summary


class CatalogJob:
    """A run on an output that the caller holds. No dataclass on purpose: Prefect walks through those that tasks get."""

    def __init__(self, parameters: CatalogParameters, storage_options: Mapping[str, Any]) -> None:
        self.parameters = parameters
        self.output = RunOutput(parameters.inputs.output_uri, Locations(storage_options=storage_options))
        self.stop = StopRequest()
        self.failure = ""
        self.report_uri = ""
        self._storage_options = storage_options
        self._plan: CatalogPlan | None = None
        self._outcome: RunOutcome | None = None

    @property
    def name(self) -> str:
        """What people call the run: the last part of its output's location."""
        return self.output.root_uri.rstrip("/").rpartition("/")[2] or self.output.root_uri

    @property
    def plan(self) -> "CatalogPlan":
        """The plan, after `make_plan`."""
        if self._plan is None:
            raise RuntimeError("the plan has not been made yet")
        return self._plan

    def hold_output(self) -> "Lease":
        """The lease that has to be held from before the plan until the report is written."""
        from tasks.storage.lease import Lease

        inputs, cluster = self.parameters.inputs, self.parameters.cluster
        return Lease(self.output, f"run {self.name!r}", cluster.lease_ttl_s, wait=inputs.if_busy == "wait")

    def make_plan(self) -> str:
        """Reads the catalog and the results; returns the counts in words."""
        self._plan = make_plan(self.parameters, self._storage_options)
        return describe_plan(self._plan)

    def generate(self, lease: "Lease", on_progress: Callable[["Progress"], None]) -> None:
        """Makes what the plan says is missing. SIGINT and SIGTERM end it in order, see `stop`.

        Too many failed items are remembered in `failure`, because the report still has to be written.
        """
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
                    lease=lease,
                    on_progress=on_progress,
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
