"""The run of precompute_features: from a plan to a complete feature store, on Ray."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ezigen.config import ConfigurationError, RayConfig, StackConfig
from tasks.cluster.model_memory import worker_memory_bytes
from tasks.features.budget import ByteBudget
from tasks.features.build import FeatureWork
from tasks.features.hardware import fit_cluster
from tasks.features.manifest import MANIFEST_PATH, write_index, write_store
from tasks.features.outcome import FeatureOutcome
from tasks.features.ownership import Kind
from tasks.features.plan import FLOW, FeaturePlan
from tasks.features.schema import INDEX, LATENTS, SAMPLES, SUBJECTS, TABLES, TEXTS
from tasks.features.stored_plan import write_plan
from tasks.features.writer import ShardFiles
from tasks.monitoring.logs import set_process_ids
from tasks.sharding import ShardMeter, ShardProgress, ShardReport, run_shards
from tasks.sharding.leftovers import remove_leftovers
from tasks.sharding.metrics import ShardMetrics
from tasks.storage import Locations, OutputFolder, RunRecord, RunState, new_run_id
from tasks.storage.filesystems import with_retries
from tasks.storage.lease import Lease, LeaseLost
from tasks.storage.run_record import now_text, package_versions

__all__ = ["FeaturesRun", "index_features", "run_features"]

logger = logging.getLogger(__name__)

_PACKAGES = ("ezigen-pipeline", "torch", "diffusers", "transformers", "ray", "pyarrow")
_FOLDERS = (*TABLES, INDEX, SAMPLES)


@dataclass(frozen=True)
class FeaturesRun:
    """Everything that a run is asked to do. `lease` is held by the caller for the whole run."""

    plan: FeaturePlan
    output: OutputFolder
    cluster: RayConfig
    locations: Locations = field(default_factory=Locations)
    lease: Lease | None = None
    on_progress: Callable[[ShardProgress], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


def run_features(
    plan: FeaturePlan,
    output: OutputFolder,
    *,
    cluster: RayConfig,
    locations: Locations | None = None,
    lease: Lease | None = None,
    on_progress: Callable[[ShardProgress], None] | None = None,
    stop: threading.Event | None = None,
) -> FeatureOutcome:
    """Computes the shards that the plan says are missing, then writes the index and the manifest.

    Ray is started, or joined, only if there is a shard to make. Setting `stop` ends the run early and in order: what
    has finished is stored, and the store stays incomplete. Raises ShardsFailed at the end, after everything else is
    stored, and BudgetReached; ConfigurationError, PoolFailed, ClusterLost or LeaseLost when the run cannot go on.
    """
    run = FeaturesRun(plan, output, cluster, locations or Locations(), lease, on_progress, stop or threading.Event())
    previous = output.read_run()
    if plan.finished and previous is not None and previous.state == "finished":
        return _Execution(run, previous).repeat(previous)
    return _Execution(run, previous).execute()


def index_features(plan: FeaturePlan, output: OutputFolder, *, check: Callable[[], None] = lambda: None) -> str:
    """Writes index.parquet and manifest.json, unless they are there, and returns the manifest's location.

    For a stage of its own; `run_features` has done it already. Raises ConfigurationError if a shard is missing.
    """
    from tasks.features.plan import find_done, is_indexed

    done, _ = find_done(output, plan.identity, plan.owned)
    missing = [shard for shard in plan.shards if shard not in done]
    if missing:
        raise ConfigurationError(
            f"the feature store at {output.root_uri} lacks {len(missing)} shards ({missing[0]}); "
            "run precompute_features again."
        )
    if not is_indexed(output, plan.identity, done):
        check()
        write_index(output, plan.identity, done)
    return output.uri(MANIFEST_PATH)


class _Execution:
    """One run while it goes on."""

    def __init__(self, run: FeaturesRun, previous: RunRecord | None) -> None:
        self.run, self.plan = run, run.plan
        self.record = _new_record(run).after(previous)
        self.started_s = time.monotonic()
        self.shards = dict(run.plan.done)
        self.made: list[str] = []
        self.subjects_made = 0
        self.budget = _make_budget(run.plan)
        self.num_workers = run.plan.estimate.hardware.num_workers
        self.stop = threading.Event()
        self.meter = ShardMeter(
            "subjects",
            run.plan.num_subjects,
            len(run.plan.shards),
            run.on_progress,
            done=run.plan.num_subjects - run.plan.num_subjects_to_do,
            shards_done=len(run.plan.done),
        )
        self.metrics = ShardMetrics(
            FLOW, run.output.name, self.meter, run_id=self.record.run_id, model=run.plan.model.model
        )

    def repeat(self, previous: RunRecord) -> FeatureOutcome:
        """The outcome of a finished store; writes nothing."""
        return dataclasses.replace(self._outcome("finished"), run_id=previous.run_id, seconds=0.0)

    def execute(self) -> FeatureOutcome:
        """From the first write of run.json to the last."""
        set_process_ids(run_id=self.record.run_id)
        self._check_lease()
        self.run.output.write_run(self.record)
        try:
            self._begin()
            self._make_shards()
            if self._is_complete():
                self._finish()
        except LeaseLost:
            raise
        except BaseException as error:
            self._end_badly(error)
            raise
        return self._end("finished" if self._is_complete() else "stopped")

    # ---- the work

    def _begin(self) -> None:
        """Says what the store is, and takes back what is no longer true of it."""
        plan, output = self.plan, self.run.output
        write_store(output, plan.identity, row_group_mib=plan.config.row_group_mib)
        write_plan(output, plan.identity, plan.pairs, dict(plan.owned))
        if plan.to_do:
            self._delete(MANIFEST_PATH)
        for shard in plan.damaged:
            self._check_lease()
            self._delete(f"{SAMPLES}/{shard}.parquet")

    def _make_shards(self) -> None:
        """Raises BudgetReached when there is no place for what is missing, after what was begun is stored."""
        if not self.budget.has_place(self.num_workers):
            raise self.budget.error()
        run_shards(
            self._make_work(),
            self.plan.to_do,
            cluster=self._cluster(),
            on_report=self._take_report,
            check=self._check,
            tick=self._tick,
            stop=self.stop,
            worker_memory_bytes=worker_memory_bytes(self.plan.model.model),
            metrics=self.metrics,
        )
        if self.stop.is_set() and not self.run.stop.is_set() and not self._is_complete():
            raise self.budget.error()

    def _make_work(self) -> FeatureWork:
        plan, cluster = self.plan, self._cluster()
        return FeatureWork(
            pairs=plan.pairs,
            output=self.run.output,
            identity=plan.identity,
            config=plan.config,
            model=_placed(plan.model, cluster),
            owned={shard: plan.owned[shard] for shard in plan.to_do},
            locations=self.run.locations,
            num_threads=max(1, int(cluster.cpus_per_worker)),
        )

    def _cluster(self) -> RayConfig:
        """A model that is told to stay on the CPU needs no GPU."""
        return fit_cluster(self.run.cluster, self.plan.model)

    def _take_report(self, report: ShardReport) -> None:
        self.shards[report.shard] = ShardFiles(report.shard, report.counts["pairs"], report.files)
        self.made.append(report.shard)
        self.subjects_made += report.rows
        self.meter.add(report)
        self.budget.add(report.shard, sum(file.num_bytes for file in report.files))
        # Every worker may have begun another shard already, and begin one more before it hears that no more are wanted.
        if not self.budget.has_place(2 * self.num_workers):
            self.stop.set()

    def _tick(self, in_flight: int, num_workers: int) -> None:
        self.num_workers = max(in_flight, num_workers, 1)
        self.meter.tick(in_flight, num_workers)

    def _check(self) -> None:
        self._check_lease()
        if self.run.stop.is_set():
            self.stop.set()

    def _is_complete(self) -> bool:
        return all(shard in self.shards for shard in self.plan.shards)

    def _check_lease(self) -> None:
        if self.run.lease is not None:
            self.run.lease.check()

    def _delete(self, relative: str) -> None:
        filesystem, path = self.run.output.filesystem, self.run.output.path(relative)
        with contextlib.suppress(FileNotFoundError):
            with_retries(lambda: filesystem.rm_file(path), f"deleting {self.run.output.uri(relative)}")

    # ---- the end

    def _finish(self) -> None:
        self._check_lease()
        write_index(self.run.output, self.plan.identity, self.shards)

    def _end(self, state: RunState) -> FeatureOutcome:
        self._tidy()
        outcome = self._outcome(state)
        self._close(outcome, "")
        self.meter.tick(0, 0, force=True)
        return outcome

    def _tidy(self) -> None:
        """Removes what killed workers left. The run is complete without it."""
        try:
            self._check_lease()
            remove_leftovers(self.run.output, _FOLDERS)
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

    def _close(self, outcome: FeatureOutcome, message: str) -> None:
        self._check_lease()
        rate = outcome.subjects_made / outcome.seconds if outcome.seconds else 0.0
        measurements = {"subjects_per_s": round(rate, 3), "num_bytes": dict(outcome.num_bytes)}
        record = self.record.closed(outcome.state, _counts(self.plan, outcome), measurements=measurements)
        self.run.output.write_run(dataclasses.replace(record, message=message))

    def _outcome(self, state: RunState) -> FeatureOutcome:
        damaged = set(self.plan.damaged)
        rows, num_bytes = self._sum_tables()
        return FeatureOutcome(
            run_id=self.record.run_id,
            state=state,
            pairs=rows[SAMPLES],
            subjects=rows[SUBJECTS],
            targets=rows[LATENTS],
            texts=rows[TEXTS],
            num_bytes={table: num_bytes[table] for table in _FOLDERS if table in num_bytes},
            seconds=time.monotonic() - self.started_s,
            subjects_made=self.subjects_made,
            shards_made=len(self.made),
            shards_kept=len(self.plan.done),
            shards_repaired=sum(shard in damaged for shard in self.made),
            manifest_uri=self.run.output.uri(MANIFEST_PATH) if state == "finished" else "",
        )

    def _sum_tables(self) -> tuple[Counter[str], Counter[str]]:
        """Rows and bytes by table of what is stored."""
        rows: Counter[str] = Counter()
        num_bytes: Counter[str] = Counter()
        for file in (file for shard in self.shards.values() for file in shard.files):
            table = file.path.partition("/")[0]
            rows[table] += file.rows
            num_bytes[table] += file.num_bytes
        return rows, num_bytes


def _make_budget(plan: FeaturePlan) -> ByteBudget:
    tables: dict[str, Kind] = {SUBJECTS: "subjects", LATENTS: "targets", TEXTS: "texts"}
    planned = {
        shard: plan.estimate.bytes_of({table: one.counts[kind] for table, kind in tables.items()})
        for shard, one in plan.owned.items()
    }
    budget = ByteBudget(plan.inputs.max_gib, planned)
    for shard, stored in plan.done.items():
        budget.add(shard, sum(file.num_bytes for file in stored.files))
    return budget


def _placed(model: StackConfig, cluster: RayConfig) -> StackConfig:
    """A worker that reserves no GPU must not take one, whatever its node has."""
    return model.model_copy(update={"device": "cpu"}) if cluster.accelerator == "cpu" else model


def _counts(plan: FeaturePlan, outcome: FeatureOutcome) -> dict[str, int]:
    return {
        "pairs": plan.num_pairs,
        "subjects": plan.num_subjects,
        "targets": plan.num_targets,
        "texts": plan.num_texts,
        "subjects_made": outcome.subjects_made,
        "shards_made": outcome.shards_made,
        "shards_kept": outcome.shards_kept,
        "shards_repaired": outcome.shards_repaired,
    }


def _new_record(run: FeaturesRun) -> RunRecord:
    plan = run.plan
    return RunRecord(
        run_id=new_run_id(),
        state="running",
        started_at=now_text(),
        flow=FLOW,
        inputs=plan.inputs.model_dump(mode="json"),
        model=plan.model.model_dump(mode="json"),
        config=plan.config.model_dump(mode="json"),
        cluster=run.cluster.model_dump(mode="json"),
        fingerprints={
            "features": plan.identity.digest(),
            "model": plan.identity.model_fingerprint,
            "pairs": plan.pairs.digest,
        },
        versions=package_versions(_PACKAGES),
    )
