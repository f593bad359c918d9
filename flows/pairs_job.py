"""One run of build_pairs, from the lease to the card: what the stages of the flow work on. Needs no Prefect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from flows.job import Job, Summary
from flows.parameters import PairParameters
from flows.progress import RunProgress
from flows.stopping import drain_on_signals
from flows.terminal import out, print_table
from tasks.reports.wording import format_decimal, format_span, plural
from tasks.storage import Locations, OutputFolder

if TYPE_CHECKING:
    from tasks.pairs.outcome import PairOutcome
    from tasks.pairs.plan import PairPlan
    from tasks.sharding.progress import ShardProgress

SOURCE_NAMES = {"coco": "COCO", "youtube_vis": "YouTube-VIS"}


@dataclass(frozen=True)
class PairsSummary(Summary):
    """What the output holds after a run."""

    outcome: "PairOutcome"
    card_uri: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.outcome.stopped

    def describe(self) -> str:
        """400 pairs, 12 refused; for a finished set: nothing to do: 400 pairs, 12 refused before."""
        outcome = self.outcome
        refused = sum(outcome.refused.values())
        text = plural(outcome.built, "pair") + (f", {refused:,} refused" if refused else "")
        if outcome.nothing_to_do:
            return f"nothing to do: {text} before"
        missing = sum(source.missing for source in outcome.per_source.values())
        if outcome.stopped:
            return f"{text}, {missing:,} left; run again to continue"
        return f"{text}; {missing:,} fewer than wanted, the data sets give no more" if missing else text

    def print_details(self) -> None:
        """Pairs by source, refusals by reason, speed, and where the card is."""
        outcome = self.outcome
        rows = [
            (SOURCE_NAMES.get(name, name), f"{s.built:,}", f"{s.wanted:,}", f"{s.candidates:,}")
            for name, s in outcome.per_source.items()
        ]
        print_table(("source", "pairs", "wanted", "candidates"), rows)
        if outcome.refused:
            refused = sorted(outcome.refused.items(), key=lambda item: (-item[1], item[0]))
            print_table(("refused", "reason"), [(f"{number:,}", reason) for reason, number in refused])
        if outcome.shards_made and not outcome.shards_kept and outcome.seconds:
            rate = format_decimal(outcome.built / outcome.seconds)
            out.print(f"{format_span(outcome.seconds)} in all: {rate} pairs/s")
        if self.card_uri:
            out.print(f"card: {escape(self.card_uri)}")


class PairsJob(Job):
    """A run of build_pairs on an output that the caller holds."""

    artifact_prefix = "pairs"

    def __init__(self, parameters: PairParameters, storage_options: Mapping[str, Any]) -> None:
        self._locations = Locations(storage_options=storage_options)
        inputs = parameters.inputs
        super().__init__(OutputFolder(inputs.output_uri, self._locations), parameters.cluster, inputs.if_busy)
        self.parameters = parameters
        self.card_uri = ""
        self._plan: PairPlan | None = None
        self._outcome: PairOutcome | None = None

    @property
    def outcome(self) -> "PairOutcome":
        """What came of the run, after `work`."""
        if self._outcome is None:
            raise RuntimeError("nothing has been built yet")
        return self._outcome

    def look_at_plan(self) -> "PairPlan":
        """The plan, without storing it: for a look at the numbers."""
        from tasks.pairs.plan import plan_pairs

        wanted = self.parameters
        return plan_pairs(wanted.inputs, wanted.pairs, self.output, self._locations, store=False)

    def make_plan(self) -> str:
        """Reads the annotations, or the stored plan; returns the counts in words."""
        from tasks.pairs.plan import plan_pairs

        wanted = self.parameters
        self._plan = plan_pairs(wanted.inputs, wanted.pairs, self.output, self._locations, check=self.lease.check)
        return describe_plan(self._plan)

    def work(self, on_progress: Callable[[RunProgress], None]) -> None:
        """Builds the pairs that the plan says are missing; see Job."""
        from tasks.pairs.outcome import TooManyRefused
        from tasks.pairs.run import run_pairs

        if self._plan is None:
            raise RuntimeError("the plan has not been made yet")
        try:
            with drain_on_signals(self.stop):
                self._outcome = run_pairs(
                    self._plan,
                    self.output,
                    cluster=self.parameters.cluster,
                    locations=self._locations,
                    lease=self.lease,
                    on_progress=lambda progress: on_progress(to_run_progress(progress)),
                    stop=self.stop.event,
                )
        except TooManyRefused as error:
            self._outcome, self.failure = error.outcome, str(error)

    def write_card(self) -> str:
        """Writes card.json and card.html beside the pairs; returns the page's location."""
        from tasks.pairs.card import write_card

        self.card_uri = write_card(self.output)
        return self.card_uri

    def summarize(self) -> PairsSummary:
        """The end of the run, after `work`."""
        return PairsSummary(
            outcome=self.outcome,
            card_uri=self.card_uri,
            failure=self.failure,
            stopped_by=self.stop.signal_number if self.outcome.stopped else None,
        )


def check_early(parameters: PairParameters) -> None:
    """Finds most mistakes within a second, before a server or Ray is started: the folders of the data sets.

    Raises ConfigurationError. Data sets whose keys are in a Prefect block are looked at later, when there is a server.
    """
    from tasks.datasets.coco import CocoReader
    from tasks.datasets.youtube_vis import YoutubeVisReader

    inputs = parameters.inputs
    if inputs.storage_block:
        return
    if inputs.coco_uri and inputs.num_coco_pairs:
        CocoReader(inputs.coco_uri, inputs.coco_split).fingerprint()
    if inputs.youtube_vis_uri and inputs.num_youtube_vis_pairs:
        YoutubeVisReader(inputs.youtube_vis_uri).fingerprint()


def to_run_progress(progress: "ShardProgress") -> RunProgress:
    """The progress of a run over shards in the words of every run: what is refused is made up for by others."""
    return RunProgress(
        unit=progress.unit,
        total=progress.total,
        done=progress.done,
        lost=progress.refused,
        lost_word="refused",
        ended=progress.done,
        rate_per_s=progress.rate_per_s,
        eta_s=progress.eta_s,
    )


def describe_plan(plan: "PairPlan") -> str:
    """400 pairs wanted of 1,234 candidates: 300 of COCO, 100 of YouTube-VIS; 2 of 4 shards to do."""
    parts = [f"{source.planned:,} of {SOURCE_NAMES.get(name, name)}" for name, source in plan.sources.items()]
    candidates = sum(source.candidates for source in plan.sources.values())
    wanted = plural(sum(source.wanted for source in plan.sources.values()), "pair")
    shards = f"{len(plan.to_do):,} of {plural(len(plan.shards), 'shard')} to do"
    return f"{wanted} wanted, {candidates:,} candidates; planned {', '.join(parts)}; {shards}"


def print_plan(plan: "PairPlan") -> None:
    """The plan's counts."""
    print_table(("", ""), plan.describe())
