"""The run of build_pairs: from a plan to stored pairs, on Ray."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ezigen.config import ConfigurationError, RayConfig
from tasks.cluster import Cluster, connect
from tasks.datasets.drawing import PictureLimits
from tasks.monitoring.logs import set_process_ids
from tasks.pairs.build import PairWork
from tasks.pairs.layout import FOLDERS
from tasks.pairs.manifest import PairsManifest, read_reports, sum_counts
from tasks.pairs.outcome import PairOutcome, SourceOutcome, TooManyRefused
from tasks.pairs.plan import PairPlan, to_plan
from tasks.pairs.sources import open_data_sets
from tasks.pairs.stored_plan import StoredPlan, next_candidates, plan_round
from tasks.sharding import ShardMeter, ShardProgress, ShardReport, run_shards
from tasks.sharding.leftovers import remove_leftovers
from tasks.sharding.metrics import ShardMetrics
from tasks.storage import Locations, OutputFolder, RunRecord, RunState, new_run_id
from tasks.storage.lease import Lease, LeaseLost
from tasks.storage.run_record import now_text, package_versions
from tasks.storage.stored_file import StoredFile

__all__ = ["PairsRun", "run_pairs"]

logger = logging.getLogger(__name__)

_FLOW = "build_pairs"
_PACKAGES = ("ezigen-pipeline", "pillow", "numpy", "pycocotools", "ray", "pyarrow")

_WORKER_BYTES = 600 * 2**20
"""What a worker takes at the usual shard size; decides about their number where memory is short."""


@dataclass(frozen=True)
class PairsRun:
    """Everything that a run is asked to do. `lease` is held by the caller for the whole run."""

    plan: PairPlan
    output: OutputFolder
    cluster: RayConfig
    locations: Locations | None = None
    lease: Lease | None = None
    on_progress: Callable[[ShardProgress], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


def run_pairs(
    plan: PairPlan,
    output: OutputFolder,
    *,
    cluster: RayConfig,
    locations: Locations | None = None,
    lease: Lease | None = None,
    on_progress: Callable[[ShardProgress], None] | None = None,
    stop: threading.Event | None = None,
) -> PairOutcome:
    """Builds what the plan says is missing, and then, round by round, what refused candidates left missing.

    Ray is started, or joined, only if there is a shard to make. Setting `stop` ends the run early and in order. Raises
    TooManyRefused and ShardsFailed at the end, after everything else is stored; ConfigurationError, ClusterLost or
    LeaseLost when the run cannot go on. What is stored stays in each case.
    """
    run = PairsRun(plan, output, cluster, locations, lease, on_progress, stop or threading.Event())
    previous = output.read_run()
    execution = _Execution(run, previous)
    if plan.finished and previous is not None and previous.state == "finished":
        return execution.repeat(previous)
    return execution.execute()


class _Execution:
    """One run while it goes on."""

    def __init__(self, run: PairsRun, previous: RunRecord | None) -> None:
        self.run, self.plan = run, run.plan
        self.record = _new_record(run).after(previous)
        self.started_s = time.monotonic()
        self.reports: dict[str, ShardReport] = {}
        self.num_made = self.num_pairs_made = 0
        self.meter = ShardMeter("pairs", run.plan.expected, len(run.plan.shards), run.on_progress)
        self.metrics = ShardMetrics(_FLOW, run.output.name, self.meter, run_id=self.record.run_id)
        self.ray = contextlib.ExitStack()
        self.cluster: Cluster | None = None

    def repeat(self, previous: RunRecord) -> PairOutcome:
        """The outcome of a finished set, from its manifest; writes nothing."""
        self._load_reports()
        return dataclasses.replace(self._outcome("finished"), run_id=previous.run_id, seconds=0.0)

    def execute(self) -> PairOutcome:
        """From the first write of run.json to the last."""
        set_process_ids(run_id=self.record.run_id)
        self._check_lease()
        self.run.output.write_run(self.record)
        try:
            self._load_reports()
            with self.ray:
                self._work()
            is_finished = self._is_complete() and next_candidates(self._stored_plan(), self._built()) is None
            if is_finished:
                self._finish()
        except LeaseLost:
            raise
        except BaseException as error:
            self._end_badly(error)
            raise
        return self._end("finished" if is_finished else "stopped")

    # ---- the work

    def _load_reports(self) -> None:
        """What earlier runs have stored. A shard whose record does not fit is made again."""
        manifest = PairsManifest.load(self.run.output)
        known = {report.shard: report for report in manifest.reports} if manifest else {}
        for shard in self.plan.done:
            if shard in known:
                self._count(known[shard])
        rest = [shard for shard in self.plan.done if shard not in known]
        for _, report in read_reports(self.run.output, rest, self.plan.identity):
            if report is not None:
                self._count(report)

    def _work(self) -> None:
        """The rounds that are planned, and further ones until nothing is missing or nothing is left to try."""
        self._make_shards()
        while self._is_complete() and not self.run.stop.is_set() and self._plan_next():
            self._make_shards()

    def _plan_next(self) -> bool:
        """Whether there is another round; it is planned now."""
        longer = plan_round(self._stored_plan(), self._built(), self.run.output, self._check_lease)
        if longer is None:
            return False
        self.plan = to_plan(longer, self.plan.inputs, self.plan.config, self.run.output)
        logger.info("round %d: %d shards", self.plan.num_rounds - 1, len(self._to_do()))
        self.meter.expect(self.plan.expected, len(self.plan.shards))
        return True

    def _stored_plan(self) -> StoredPlan:
        stored = StoredPlan.load(self.run.output)
        if stored is None:
            raise ConfigurationError(f"{self.run.output.root_uri} holds no plan any more; run again.")
        return stored

    def _built(self) -> Mapping[str, int]:
        return sum_counts(list(self.reports.values()))[0]

    def _make_shards(self) -> None:
        to_do = self._to_do()
        if not to_do or self.run.stop.is_set():
            return
        # Nothing here computes on a GPU.
        config = self.run.cluster.model_copy(update={"accelerator": "cpu"})
        if self.cluster is None:
            self.cluster = self.ray.enter_context(connect(config))
        run_shards(
            self._make_work(),
            to_do,
            cluster=config,
            on_report=self._take_report,
            check=self._check_lease,
            tick=self.meter.tick,
            stop=self.run.stop,
            worker_memory_bytes=_WORKER_BYTES,
            connected=self.cluster,
            metrics=self.metrics,
        )

    def _make_work(self) -> PairWork:
        inputs = self.plan.inputs
        data_sets = open_data_sets(inputs, self.run.locations)
        return PairWork(
            output=self.run.output,
            identity=self.plan.identity,
            config=self.plan.config,
            limits=PictureLimits(inputs.max_picture_side_px, inputs.max_picture_pixels),
            locations={data.source: data.reader.locations for data in data_sets},
        )

    def _take_report(self, report: ShardReport) -> None:
        self.num_made += 1
        self.num_pairs_made += report.rows
        self._count(report)

    def _count(self, report: ShardReport) -> None:
        self.reports[report.shard] = report
        self.meter.add(report)

    def _to_do(self) -> list[str]:
        return [shard for shard in self.plan.shards if shard not in self.reports]

    def _is_complete(self) -> bool:
        return not self._to_do()

    def _check_lease(self) -> None:
        if self.run.lease is not None:
            self.run.lease.check()

    # ---- the end

    def _finish(self) -> None:
        self._check_lease()
        reports = tuple(self.reports[shard] for shard in self.plan.shards)
        stored = self._stored_plan().defects
        defects = None if stored is None else StoredFile.from_json(dict(stored))
        PairsManifest(self.plan.identity, reports, defects).store(self.run.output)

    def _end(self, state: RunState) -> PairOutcome:
        self._tidy()
        outcome = self._outcome(state)
        limit, message = self.plan.inputs.max_refused_share, ""
        if state == "finished" and outcome.refused_share > limit:
            message = (
                f"{outcome.expected - outcome.built:,} of {outcome.expected:,} pairs are missing because their "
                f"candidates were refused ({outcome.refused_share:.0%}), more than inputs.max_refused_share allows "
                f"({limit:.0%}); all others are stored, and the card lists the reasons."
            )
            outcome = dataclasses.replace(outcome, state="failed")
        self._close(outcome, message)
        self.meter.tick(0, 0, force=True)
        if message:
            raise TooManyRefused(message, outcome)
        return outcome

    def _tidy(self) -> None:
        """Removes what killed workers left. The run is complete without it."""
        try:
            self._check_lease()
            remove_leftovers(self.run.output, FOLDERS)
        except LeaseLost:
            raise
        except Exception:
            logger.exception("the output could not be tidied up; it is complete")

    def _end_badly(self, error: BaseException) -> None:
        """Records the reason; whatever goes wrong here must not hide the reason itself."""
        try:
            self._close(self._outcome("failed"), f"{type(error).__name__}: {error}")
        except Exception:
            logger.exception("the end of the run could not be recorded")

    def _close(self, outcome: PairOutcome, message: str) -> None:
        self._check_lease()
        rate = self.num_pairs_made / outcome.seconds if outcome.seconds else 0.0
        measurements = {"pairs_per_s": round(rate, 3)}
        record = self.record.closed(outcome.state, _counts(outcome), measurements=measurements, message=message)
        self.run.output.write_run(record)

    def _outcome(self, state: RunState) -> PairOutcome:
        built, refused = sum_counts(list(self.reports.values()))
        return PairOutcome(
            run_id=self.record.run_id,
            state=state,
            built=built.total(),
            refused=dict(refused.most_common()),
            per_source={
                name: SourceOutcome(source.wanted, built[name], source.candidates)
                for name, source in self.plan.sources.items()
            },
            seconds=time.monotonic() - self.started_s,
            shards_made=self.num_made,
            shards_kept=len(self.reports) - self.num_made,
            num_rounds=self.plan.num_rounds,
        )


def _counts(outcome: PairOutcome) -> dict[str, int]:
    refused = {f"refused: {reason}": count for reason, count in outcome.refused.items()}
    missing = sum(source.missing for source in outcome.per_source.values())
    counts = {"built": outcome.built, "missing": missing, "shards_made": outcome.shards_made}
    return {**counts, "shards_kept": outcome.shards_kept, **refused}


def _new_record(run: PairsRun) -> RunRecord:
    plan = run.plan
    return RunRecord(
        run_id=new_run_id(),
        state="running",
        started_at=now_text(),
        flow=_FLOW,
        inputs=plan.inputs.model_dump(mode="json"),
        config=plan.config.model_dump(mode="json"),
        cluster=run.cluster.model_dump(mode="json"),
        fingerprints={"plan": plan.identity},
        versions=package_versions(_PACKAGES),
    )
