"""The catalog run: from a plan to stored images and result rows, on Ray."""

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ezigen.config import (
    MOST_SLOTS,
    CatalogInputs,
    ClusterConfig,
    ConfigurationError,
    ItemError,
    ModelConfig,
    SamplerConfig,
)
from tasks.actors import CatalogWorker, ItemReport, WorkerSetup
from tasks.actors.records import tell_worker_record
from tasks.catalog.making import MakerSettings
from tasks.catalog.metrics import CatalogMetrics
from tasks.catalog.outcome import Measurements, RunOutcome, TooManyFailures
from tasks.catalog.plan import CatalogPlan
from tasks.catalog.progress import Progress, ProgressMeter
from tasks.catalog.results import ResultRow, failed_row, refused_row
from tasks.catalog.rows import Item
from tasks.catalog.shard_writer import ShardWriter
from tasks.catalog.sketches import memory_of_worker
from tasks.catalog.stored_subjects import SubjectSource
from tasks.cluster import Cluster, WorkerPlan, connect, plan_workers
from tasks.cluster.environment import SecretVariables
from tasks.cluster.planner import Condemned, PoolLimits
from tasks.monitoring.logs import log_ids, set_process_ids
from tasks.storage import RunOutput, RunRecord, RunState, compact_results, new_run_id, remove_leftovers
from tasks.storage.lease import Lease, LeaseLost
from tasks.storage.run_record import now_text, package_versions

__all__ = ["CatalogRun", "Progress", "RunOutcome", "TooManyFailures", "run_catalog"]

logger = logging.getLogger(__name__)

_PACKAGES = ("ezigen-pipeline", "torch", "diffusers", "transformers", "ray", "pyarrow")
_LEFTOVER_AGE_S = 2.0
"""Younger temporary files may be the lease's; at the end of a run nobody else writes."""


@dataclass(frozen=True)
class CatalogRun:
    """Everything that a run is asked to do. `lease` is held by the caller for the whole run.

    `worker` is the class of the actors, CatalogWorker or one that behaves like it.
    """

    plan: CatalogPlan
    output: RunOutput
    inputs: CatalogInputs
    model: ModelConfig
    sampler: SamplerConfig
    cluster: ClusterConfig
    lease: Lease | None = None
    on_progress: Callable[[Progress], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    worker: type[CatalogWorker] = CatalogWorker
    connected: Cluster | None = None
    """A Ray that the caller keeps for several runs; without one, Ray is started or joined for this run."""


def run_catalog(
    plan: CatalogPlan,
    output: RunOutput,
    *,
    inputs: CatalogInputs,
    model: ModelConfig,
    sampler: SamplerConfig,
    cluster: ClusterConfig,
    **options: Any,
) -> RunOutcome:
    """Does what the plan says is missing; every item of it ends as a stored row. Options: see CatalogRun.

    Ray is started, or joined, only if there is an item to do. Setting `stop` ends the run early and in order: the rows
    of what has finished are stored and the outcome says `stopped`. Raises TooManyFailures at the end of a run with too
    many failed items; ConfigurationError, PoolFailed, ClusterLost or LeaseLost when the run cannot go on. What
    finished before is stored in each case, except when the lease is lost: then nothing more is written.
    """
    run = CatalogRun(plan, output, inputs, model, sampler, cluster, **options)
    previous = output.read_run()
    if not _num_items(plan) and previous is not None and previous.state == "finished":
        return RunOutcome(previous.run_id, "finished", total=0)
    return _Execution(run, previous).execute()


class _Execution:
    """One run while it goes on."""

    def __init__(self, run: CatalogRun, previous: RunRecord | None) -> None:
        self.run = run
        self.record = _new_record(run).after(previous)
        self.started = time.monotonic()
        self.leaves_leftovers = previous is not None and previous.state != "finished"
        self.meter = ProgressMeter(_num_items(run.plan), run.on_progress)
        self.measurements = Measurements()
        self.metrics = CatalogMetrics(run.output.name, run_id=self.record.run_id, model=run.model.model)
        self.workers: WorkerPlan | None = None
        self._subjects: SubjectSource | None = None
        self.writer = ShardWriter(
            run.output,
            self.record.run_id,
            shard_size=run.cluster.shard_size,
            flush_interval_s=run.cluster.flush_interval_s,
            check=self._check_lease,
        )

    def execute(self) -> RunOutcome:
        """From the first write of run.json to the last."""
        set_process_ids(run_id=self.record.run_id)
        self._check_lease()
        self.run.output.write_run(self.record)
        try:
            self._refuse()
            if self.run.plan.counts.to_do and not self.run.stop.is_set():
                self._work()
            self.writer.flush()
        except LeaseLost:
            raise
        except BaseException as error:
            self._end_badly(error)
            raise
        return self._end(self._state())

    def _state(self) -> RunState:
        everything = self.meter.done + self.meter.failed >= self.meter.total
        return "stopped" if self.run.stop.is_set() and not everything else "finished"

    # ---- the work

    def _refuse(self) -> None:
        for refusal in self.run.plan.refusals():
            self._add(refused_row(refusal, run_id=self.record.run_id))
            self._tick(0, 0)

    def _work(self) -> None:
        items = self.run.plan.items()
        first = next(items, None)
        if first is None:
            return
        self._subjects = self._find_subjects()
        kept = self.run.connected
        with connect(self._cluster_config()) if kept is None else contextlib.nullcontext(kept) as cluster:
            self.workers = self._plan_workers(cluster)
            logger.info("%d workers on %s", self.workers.count, self.workers.device)
            with self.metrics.working(self.workers.device):
                self._run_pool(cluster, self.workers, chain([first], items))
                self.writer.flush()  # before Ray is taken down, which takes seconds
                self.metrics.shards_written(self.writer.num_shards)

    def _find_subjects(self) -> SubjectSource | None:
        """The feature store that was named, which is opened once to see whether it is of use."""
        run = self.run
        if not run.inputs.features_uri:
            return None
        locations = run.plan.catalog.locations
        fingerprint = run.plan.fingerprint.model
        source = SubjectSource.of(
            run.inputs.features_uri, locations, run.sampler, model=run.model.model, model_fingerprint=fingerprint
        )
        source.open()
        return source

    def _run_pool(self, cluster: Cluster, workers: WorkerPlan, items: Iterator[Item]) -> None:
        from tasks.cluster.pool import ActorPool, Finished

        pool: ActorPool[Item, ItemReport] = ActorPool(
            self._spawner(workers),
            items,
            self._limits(workers),
            affinity=_sketch_of if self.run.sampler.num_sketch_steps else None,
            stop=self.run.stop,
            check=cluster.check,
        )
        tell = functools.partial(self.metrics.tick, self.meter, pool, workers.count)
        with contextlib.closing(pool.run()) as events:
            for event in events:
                if isinstance(event, Finished):
                    self._take_report(event)
                elif isinstance(event, Condemned):
                    self._add(self._condemned_row(event))
                self.writer.flush_if_due()
                self._tick(pool.planner.num_in_flight, pool.planner.num_ready)
                self.metrics.shards_written(self.writer.num_shards)
                tell()
        tell(force=True)
        self.leaves_leftovers |= pool.num_lost > 0

    def _take_report(self, event: Any) -> None:
        report: ItemReport = event.result
        for line in report.log:
            tell_worker_record(line, event.worker)
        self.measurements.add(report.row, report.counts)
        self.metrics.worker_counted(report.counts)
        ticket = event.ticket
        self._add(dataclasses.replace(report.row, attempts=ticket.item.attempts + ticket.attempts))

    def _condemned_row(self, condemned: Condemned[Item]) -> ResultRow:
        item, ticket = condemned.ticket.item, condemned.ticket
        with log_ids(item_id=item.row.item_id):
            logger.warning("item %r: %s (%s)", item.row.item_id, condemned.code, condemned.message)
        row = failed_row(item, ItemError(condemned.code, condemned.message), run_id=self.record.run_id)
        return dataclasses.replace(row, attempts=item.attempts + ticket.attempts)

    def _add(self, row: ResultRow) -> None:
        self.meter.add(row)
        self.metrics.item_ended(row)
        self.writer.add(row)

    def _tick(self, in_flight: int, num_workers: int, *, force: bool = False) -> None:
        self.meter.tick(in_flight, num_workers, force=force)

    def _check_lease(self) -> None:
        if self.run.lease is not None:
            self.run.lease.check()

    # ---- workers

    def _cluster_config(self) -> ClusterConfig:
        """A model that is told to stay on the CPU needs no GPU."""
        cluster = self.run.cluster
        wanted = self.run.model.device
        if wanted == "auto":
            return cluster
        accelerator = "gpu" if wanted == "cuda" else "cpu"
        if cluster.accelerator not in ("auto", accelerator):
            raise ConfigurationError(
                f'model.device is "{wanted}", but cluster.accelerator is "{cluster.accelerator}"; '
                'set one of them to "auto".'
            )
        return cluster.model_copy(update={"accelerator": accelerator})

    def _plan_workers(self, cluster: Cluster) -> WorkerPlan:
        return plan_workers(self._cluster_config(), cluster.nodes, memory_of_worker(self.run.model))

    def _spawner(self, workers: WorkerPlan) -> Callable[[str, int], Any]:
        import ray

        setup = self._setup(workers)
        actor_class = ray.remote(self.run.worker).options(
            num_cpus=workers.num_cpus,
            num_gpus=workers.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=setup.max_concurrency,
            enable_task_events=False,  # Ray's GCS would keep 3 KiB about every item, of up to 100,000 of them
        )
        return lambda name, num_slots: actor_class.remote(dataclasses.replace(setup, num_slots=num_slots), name)

    def _setup(self, workers: WorkerPlan) -> WorkerSetup:
        run, inputs = self.run, self.run.inputs
        return WorkerSetup(
            model=run.model.model_copy(update={"device": workers.device}),
            sampler=run.sampler,
            maker=MakerSettings(
                locations=run.plan.catalog.locations,
                output=run.output,
                run_id=self.record.run_id,
                max_picture_side_px=inputs.max_picture_side_px,
                max_picture_pixels=inputs.max_picture_pixels,
                preview_share=min(1.0, inputs.max_previews / max(1, run.plan.counts.rows)),
                image_format=inputs.image_format,
                image_quality=inputs.image_quality,
            ),
            num_slots=_num_slots(run.cluster, workers),
            fit_slots=run.cluster.num_slots == 0,
            num_ahead=run.cluster.num_ahead,
            compile_unet=run.cluster.compile_unet,
            num_threads=workers.num_threads,
            secrets=SecretVariables.of_process(),
            subjects=self._subjects,
        )

    def _limits(self, workers: WorkerPlan) -> PoolLimits:
        cluster = self.run.cluster
        return PoolLimits(
            num_workers=workers.count,
            num_slots=_num_slots(cluster, workers),
            num_ahead=cluster.num_ahead,
            item_timeout_s=cluster.item_timeout_s,
            start_timeout_s=cluster.start_timeout_s,
            grace_period_s=cluster.grace_period_s,
        )

    # ---- the end

    def _end(self, state: RunState) -> RunOutcome:
        self._tidy()
        outcome = self._outcome(state)
        share, limit = outcome.failed_share, self.run.inputs.max_failed_share
        message = ""
        if state == "finished" and share > limit:
            message = (
                f"{outcome.failed} of {outcome.done + outcome.failed} items failed ({share:.0%}), more than "
                f"inputs.max_failed_share allows ({limit:.0%}); everything else is done."
            )
            outcome = dataclasses.replace(outcome, state="failed")
        self._close(outcome, message)
        self._tick(0, 0, force=True)
        if message:
            raise TooManyFailures(message, outcome)
        return outcome

    def _tidy(self) -> None:
        """Removes what killed workers left and merges small shards. The run is complete without it."""
        try:
            if self.leaves_leftovers:
                self._check_lease()
                remove_leftovers(self.run.output, older_than_s=_LEFTOVER_AGE_S)
            compact_results(self.run.output, self._check_lease)
        except LeaseLost:
            raise
        except Exception:
            logger.exception("the output could not be tidied up; it is complete")

    def _end_badly(self, error: BaseException) -> None:
        """Stores what is finished and the reason; whatever goes wrong here must not hide the reason itself."""
        try:
            self.writer.flush()
            self._close(self._outcome("failed"), f"{type(error).__name__}: {error}")
        except Exception:
            logger.exception("the end of the run could not be recorded")

    def _close(self, outcome: RunOutcome, message: str) -> None:
        self._check_lease()
        record = self.record.closed(
            outcome.state, _counts(self.run.plan, outcome), measurements=outcome.measurements, message=message
        )
        self.run.output.write_run(record)

    def _outcome(self, state: RunState) -> RunOutcome:
        seconds = time.monotonic() - self.started
        measured: dict[str, Any] = {}
        if self.workers is not None:
            measured = self.measurements.to_dict(seconds, self.workers.count, self.workers.device)
        return RunOutcome(
            run_id=self.record.run_id,
            state=state,
            total=self.meter.total,
            done=self.meter.done,
            failed=self.meter.failed,
            refused=self.run.plan.counts.refused,
            failed_by_code=dict(self.meter.by_code),
            seconds=seconds,
            num_unet_calls=self.measurements.num_unet_calls,
            measurements=measured,
        )


def _sketch_of(item: Item) -> Hashable:
    """What items need to have in common to share a sketch, which is drawn from text alone."""
    return item.row.prompt, item.row.negative_prompt, item.row.seed


def _num_slots(cluster: ClusterConfig, workers: WorkerPlan) -> int:
    """Of a worker, at most: it may find that fewer fit into its device's memory."""
    return cluster.num_slots or MOST_SLOTS[workers.device]


def _num_items(plan: CatalogPlan) -> int:
    return plan.counts.to_do + plan.counts.refused


def _counts(plan: CatalogPlan, outcome: RunOutcome) -> dict[str, int]:
    counts = plan.counts
    return {
        "rows": counts.rows,
        "done": outcome.done,
        "failed": outcome.failed,
        "refused": outcome.refused,
        "done_before": counts.done,
        "failed_before": counts.failed_before,
        "postponed": counts.postponed,
        "unfinished": outcome.total - outcome.done - outcome.failed,
    }


def _new_record(run: CatalogRun) -> RunRecord:
    return RunRecord(
        run_id=new_run_id(),
        state="running",
        started_at=now_text(),
        inputs=run.inputs.model_dump(mode="json"),
        model=run.model.model_dump(mode="json"),
        sampler=run.sampler.model_dump(mode="json"),
        cluster=run.cluster.model_dump(mode="json"),
        fingerprints=dataclasses.asdict(run.plan.fingerprint),
        counts={"rows": run.plan.counts.rows, "to_do": _num_items(run.plan)},
        versions=package_versions(_PACKAGES),
    )
