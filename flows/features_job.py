"""One run of precompute_features, from the lease to the index: what the flow's stages work on. Needs no Prefect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ezigen.config import ConfigurationError
from flows.job import Job, Summary
from flows.pairs_job import to_run_progress
from flows.parameters import FeatureParameters
from flows.progress import RunProgress
from flows.stopping import drain_on_signals
from flows.terminal import out, print_table
from tasks.reports.wording import format_decimal, format_span, plural
from tasks.storage import Locations, OutputFolder

if TYPE_CHECKING:
    from tasks.features.outcome import FeatureOutcome
    from tasks.features.plan import FeaturePlan

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class FeaturesSummary(Summary):
    """What the store holds after a run."""

    outcome: "FeatureOutcome"
    shards_left: int = 0

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.outcome.stopped

    def describe(self) -> str:
        """300 subjects, 280 targets, 250 texts of 400 pairs, 1.25 GB."""
        outcome = self.outcome
        text = (
            f"{plural(outcome.subjects, 'subject')}, {plural(outcome.targets, 'target')}, "
            f"{plural(outcome.texts, 'text')} of {plural(outcome.pairs, 'pair')}, {format_bytes(outcome.total_bytes)}"
        )
        if outcome.nothing_to_do:
            return f"nothing to do: {text} before"
        return f"{text}; {plural(self.shards_left, 'shard')} left; run again to continue" if self.stopped else text

    def print_details(self) -> None:
        """Rows and bytes by table, shards, speed, and where the manifest is."""
        outcome = self.outcome
        print_table(("table", "rows", "size"), [(r["table"], r["rows"], r["size"]) for r in table_rows(outcome)])
        repaired = f", {outcome.shards_repaired:,} of them damaged before" if outcome.shards_repaired else ""
        out.print(f"{plural(outcome.shards_made, 'shard')} made{repaired}, {outcome.shards_kept:,} kept")
        if outcome.subjects_made and outcome.seconds:
            rate = format_decimal(outcome.subjects_made / outcome.seconds)
            out.print(f"{format_span(outcome.seconds)} in all: {rate} subjects/s")
        if outcome.manifest_uri:
            out.print(f"manifest: {escape(outcome.manifest_uri)}")


class FeaturesJob(Job):
    """A run of precompute_features on a store that the caller holds."""

    artifact_prefix = "features"

    def __init__(self, parameters: FeatureParameters, storage_options: Mapping[str, Any]) -> None:
        self._locations = Locations(storage_options=storage_options)
        inputs = parameters.inputs
        super().__init__(OutputFolder(inputs.output_uri, self._locations), parameters.cluster, inputs.if_busy)
        self.parameters = parameters
        self._plan: FeaturePlan | None = None
        self._outcome: FeatureOutcome | None = None

    @property
    def plan(self) -> "FeaturePlan":
        """The plan, after `make_plan`."""
        if self._plan is None:
            raise RuntimeError("the plan has not been made yet")
        return self._plan

    @property
    def outcome(self) -> "FeatureOutcome":
        """What came of the run, after `work`."""
        if self._outcome is None:
            raise RuntimeError("nothing has been computed yet")
        return self._outcome

    def look_at_plan(self, check: Callable[[], None] = lambda: None) -> "FeaturePlan":
        """The plan, which writes nothing."""
        from tasks.features.plan import plan_features

        wanted = self.parameters
        return plan_features(
            wanted.inputs,
            wanted.features,
            wanted.model,
            self.output,
            self._locations,
            cluster=wanted.cluster,
            check=check,
        )

    def make_plan(self) -> str:
        """Reads what the pairs' files say of themselves; returns the counts in words."""
        self._plan = self.look_at_plan(self.lease.check)
        return describe_plan(self._plan)

    def work(self, on_progress: Callable[[RunProgress], None]) -> None:
        """Computes the shards that the plan says are missing; see Job."""
        from tasks.features.run import run_features

        with drain_on_signals(self.stop):
            self._outcome = run_features(
                self.plan,
                self.output,
                cluster=self.parameters.cluster,
                locations=self._locations,
                lease=self.lease,
                on_progress=lambda progress: on_progress(to_run_progress(progress)),
                stop=self.stop.event,
            )

    def write_index(self) -> str:
        """Makes sure of index.parquet and manifest.json, which make the store readable; returns where the latter is."""
        from tasks.features.run import index_features

        return index_features(self.plan, self.output, check=self.lease.check)

    def summarize(self) -> FeaturesSummary:
        """The end of the run, after `work`."""
        outcome = self.outcome
        return FeaturesSummary(
            outcome=outcome,
            shards_left=len(self.plan.to_do) - outcome.shards_made,
            failure=self.failure,
            stopped_by=self.stop.signal_number if outcome.stopped else None,
        )


def check_early(parameters: FeatureParameters) -> None:
    """Finds most mistakes within a second, before a server or Ray is started: the model and the pairs.

    Raises ConfigurationError. Pairs whose keys are in a Prefect block are looked at later, when there is a server.
    """
    from ezigen.models import model_fingerprint

    model_fingerprint(parameters.model.model)
    inputs = parameters.inputs
    if inputs.storage_block:
        return
    pairs = OutputFolder(inputs.pairs_uri)
    if "manifest.json" not in pairs.list(""):
        raise ConfigurationError(
            f"inputs.pairs_uri: {pairs.root_uri} holds no finished set of pairs (no manifest.json); check the path, or "
            "finish the set with `ezigen pairs`."
        )


def describe_plan(plan: "FeaturePlan") -> str:
    """400 pairs: 300 subjects, 280 targets, 250 texts, about 1.25 GB; 2 of 4 shards to do, 1 damaged."""
    damaged = f", {len(plan.damaged):,} damaged" if plan.damaged else ""
    return (
        f"{plural(plan.num_pairs, 'pair')}: {plural(plan.num_subjects, 'subject')}, "
        f"{plural(plan.num_targets, 'target')}, {plural(plan.num_texts, 'text')}, "
        f"about {format_bytes(plan.estimate.total_bytes)}; "
        f"{len(plan.to_do):,} of {plural(len(plan.shards), 'shard')} to do{damaged}"
    )


def table_rows(outcome: "FeatureOutcome") -> list[dict[str, str]]:
    """Rows and bytes of every table of the store, for a terminal or a page."""
    rows = {
        "subjects": outcome.subjects,
        "latents": outcome.targets,
        "texts": outcome.texts,
        "samples": outcome.pairs,
    }
    return [
        {"table": name, "rows": f"{rows[name]:,}" if name in rows else "", "size": format_bytes(num_bytes)}
        for name, num_bytes in outcome.num_bytes.items()
    ]


def format_bytes(num_bytes: float) -> str:
    """Bytes as people read them: 1.25 GB, 23.1 MB, 512 bytes."""
    for name, size in _UNITS:
        if num_bytes >= size:
            return f"{format_decimal(num_bytes / size)} {name}"
    return f"{num_bytes:.0f} bytes"
