"""The run of train_adapter: from a plan to final weights, on Ray Train."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ezigen.config import ConfigurationError, MonitoringConfig, TrainingClusterConfig
from tasks.actors.records import tell_worker_record
from tasks.cluster import Cluster, ClusterLost, WorkerPlan, connect, plan_workers
from tasks.cluster.model_memory import worker_memory_bytes
from tasks.cluster.planner import PoolFailed
from tasks.features.hardware import fit_cluster
from tasks.monitoring.logs import set_process_ids
from tasks.sharding.leftovers import remove_leftovers
from tasks.storage import Locations, OutputFolder, RunRecord, RunState, new_run_id
from tasks.storage.lease import Lease, LeaseLost
from tasks.storage.run_record import now_text, package_versions
from tasks.training.checkpoints import FOLDER as CHECKPOINTS
from tasks.training.checkpoints import Checkpoints
from tasks.training.control import ControlState, ControlWatch
from tasks.training.log import FOLDER as LOG
from tasks.training.log import TENSORBOARD, read_recent
from tasks.training.measurements import FOLDER as MEASUREMENTS
from tasks.training.measurements import read_measurements
from tasks.training.metrics import TrainingMetrics
from tasks.training.outcome import TrainingOutcome, TrainingProgress
from tasks.training.plan import FINAL, FLOW, TrainingPlan, is_finished
from tasks.training.worker import LOSS_STEPS, TrainingWork

if TYPE_CHECKING:
    from tasks.training.ray_train import Fit

logger = logging.getLogger(__name__)

_TICK_S = 0.1
_PROGRESS_PERIOD_S = 0.5
_LOSS_WAIT_S = 5.0
"""When Ray Train fails, the reason is most often that a process of Ray has just died; it shows after a moment."""
_CONTROLLER_WAIT_S = 60.0
"""Its process starts in some seconds, on a machine with much to do in many."""
_MAX_FAILED_STARTS = 3
_PACKAGES = ("ezigen-pipeline", "torch", "diffusers", "transformers", "ray", "pyarrow")
_FOLDERS = (LOG, TENSORBOARD, MEASUREMENTS, FINAL, CHECKPOINTS)


@dataclass(frozen=True)
class TrainingRun:
    """Everything that a run is asked to do. `lease` is held by the caller for the whole run."""

    plan: TrainingPlan
    output: OutputFolder
    cluster: TrainingClusterConfig
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    locations: Locations = field(default_factory=Locations)
    lease: Lease | None = None
    on_progress: Callable[[TrainingProgress], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def check_lease(self) -> None:
        """Raises LeaseLost unless the run may still write."""
        if self.lease is not None:
            self.lease.check()


def run_training(
    plan: TrainingPlan,
    output: OutputFolder,
    *,
    cluster: TrainingClusterConfig,
    monitoring: MonitoringConfig | None = None,
    locations: Locations | None = None,
    lease: Lease | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    stop: threading.Event | None = None,
) -> TrainingOutcome:
    """Makes the train steps that no checkpoint holds yet, and the final weights in final/.

    `output` is the run's own folder, `plan.output`, whose lease the caller holds. Ray is started, or joined, only if
    there is something to do. Setting `stop` ends the run early and in order: it stores a checkpoint and returns.
    Raises TrainingDiverged with the step; ConfigurationError, PoolFailed, ClusterLost or LeaseLost when the run cannot
    go on. Whatever ends it, running again continues after the newest checkpoint, and no number differs from those of a
    run that was never interrupted.
    """
    run = TrainingRun(
        plan,
        output,
        cluster,
        monitoring or MonitoringConfig(),
        locations or Locations(),
        lease,
        on_progress,
        stop or threading.Event(),
    )
    previous = output.read_run()
    if is_finished(output) and previous is not None and previous.state == "finished":
        return _Execution(run, previous).repeat(previous)
    return _Execution(run, previous).execute()


class _Execution:
    """One run while it goes on."""

    def __init__(self, run: TrainingRun, previous: RunRecord | None) -> None:
        self.run, self.plan = run, run.plan
        self.checkpoints = Checkpoints(run.output)
        self.record = _new_record(run).after(previous)
        self.started_s = time.monotonic()
        self.first_step = 0
        self.state = ControlState()

    def repeat(self, previous: RunRecord) -> TrainingOutcome:
        """The outcome of a finished run; writes nothing."""
        self.first_step = self.plan.num_steps
        return dataclasses.replace(self._outcome("finished"), run_id=previous.run_id, seconds=0.0)

    def execute(self) -> TrainingOutcome:
        """From the first write of run.json to the last."""
        set_process_ids(run_id=self.record.run_id)
        self.run.check_lease()
        self.run.output.write_run(self.record)
        self.first_step = self._stored_step()
        try:
            if not is_finished(self.run.output) and not self.run.stop.is_set():
                self._train()
        except LeaseLost:
            raise
        except BaseException as error:
            self._end_badly(error)
            raise
        return self._end("finished" if is_finished(self.run.output) else "stopped")

    # ---- the work

    def _train(self) -> None:
        cluster = fit_cluster(self.run.cluster, self.plan.model)
        with connect(cluster) as ray_cluster:
            workers = _plan_workers(cluster, ray_cluster, self.plan)
            # Only now: workers of a killed run on this machine are gone, and write no more.
            self._tidy_checkpoints()
            logger.info("%d steps for %d workers on %s", self.plan.num_steps, workers.count, workers.device)
            metrics = TrainingMetrics(self.plan, run_id=self.record.run_id)
            watch = _FitWatch(self.run, cluster, ray_cluster, metrics)
            try:
                with metrics.working(workers.device):
                    watch.follow(workers)
            finally:
                watch.close()
                self.state = watch.state
        if not is_finished(self.run.output) and not self.run.stop.is_set():
            raise ClusterLost("the workers ended before the run did, without a reason; see Ray's logs")

    def _tidy_checkpoints(self) -> None:
        """What killed uploads left goes, and Ray Train is told what there is."""
        from tasks.training.ray_train import write_snapshot

        self.run.check_lease()
        self.checkpoints.collect(self.run.monitoring.num_checkpoints)
        write_snapshot(self.run.output, self.checkpoints.find())

    def _stored_step(self) -> int:
        done = self.checkpoints.find()
        return done[-1].step if done else 0

    # ---- the end

    def _end(self, state: RunState) -> TrainingOutcome:
        self._tidy()
        outcome = self._outcome(state)
        self._close(outcome, "")
        return outcome

    def _tidy(self) -> None:
        """Removes what killed workers left. The run is complete without it."""
        try:
            self.run.check_lease()
            self.checkpoints.collect(self.run.monitoring.num_checkpoints)
            remove_leftovers(self.run.output, _FOLDERS)
        except LeaseLost:
            raise
        except Exception:
            logger.exception("the output could not be tidied up; what is stored is complete")

    def _end_badly(self, error: BaseException) -> None:
        """Records the reason; whatever goes wrong here must not hide the reason itself."""
        try:
            self._close(self._outcome("failed"), f"{type(error).__name__}: {error}")
        except Exception:
            logger.exception("the end of the run could not be recorded")

    def _close(self, outcome: TrainingOutcome, message: str) -> None:
        self.run.check_lease()
        counts = {
            "steps": outcome.step,
            "num_steps": outcome.num_steps,
            "steps_made": outcome.steps_made,
            "restarts": outcome.num_restarts,
        }
        measurements = {"samples_per_s": round(outcome.samples_per_s, 3), "loss": outcome.loss}
        record = self.record.closed(outcome.state, counts, measurements=measurements)
        self.run.output.write_run(dataclasses.replace(record, message=message))

    def _outcome(self, state: RunState) -> TrainingOutcome:
        output, step = self.run.output, self._stored_step()
        losses = read_recent(output, LOSS_STEPS).column("loss").to_numpy()
        samples, training_s = _rate(self.state)
        return TrainingOutcome(
            run_id=self.record.run_id,
            state=state,
            run=self.plan.run,
            run_uri=output.root_uri,
            step=step,
            num_steps=self.plan.num_steps,
            steps_made=max(0, step - self.first_step),
            loss=float(losses.mean()) if len(losses) else None,
            measurements=tuple(read_measurements(output)),
            seconds=time.monotonic() - self.started_s,
            samples_per_s=samples / training_s if training_s else 0.0,
            num_workers=self.state.num_workers,
            num_restarts=self.state.num_losses,
            final_uri=output.uri(FINAL) if state == "finished" else "",
        )


class _FitWatch:
    """Ray Train at work, watched: whatever ends it, this returns or raises within seconds."""

    def __init__(
        self, run: TrainingRun, cluster: TrainingClusterConfig, ray_cluster: Cluster, metrics: TrainingMetrics
    ) -> None:
        from tasks.training.node_watch import NodeWatch

        self._run, self._cluster, self._ray, self._metrics = run, cluster, ray_cluster, metrics
        self._num_wanted = 0
        self._node = NodeWatch()
        self._control = ControlWatch()
        self._fit: Fit | None = None
        self._waiting_since_s: float | None = time.monotonic()
        self._attempt = 0
        self._num_losses = self._num_resizes = 0
        self._stop_deadline_s: float | None = None
        self._told_s = 0.0

    @property
    def state(self) -> ControlState:
        """What the workers have told last."""
        return self._control.state

    def follow(self, workers: WorkerPlan) -> None:
        """Until Ray Train returns, or until the run is stopped and the time for that is over."""
        from tasks.training.ray_train import Fit, FitRequest

        self._num_wanted = workers.count
        work = TrainingWork(
            plan=self._run.plan,
            output=self._run.output,
            monitoring=self._run.monitoring,
            locations=self._run.locations,
            device=workers.device,
            num_threads=workers.num_threads,
            control=self._control.actor,
        )
        request = FitRequest(work, self._run.output, workers, self._cluster, self._run.monitoring)
        self._fit = Fit(request, self._control.actor)
        while not (self._fit.is_over or self._is_late()):
            self._step()
            time.sleep(_TICK_S)
        self._settle()

    def close(self) -> None:
        """Ends every worker, whatever it is doing."""
        if self._fit is not None:
            # In a joined cluster a controller that nobody ends would wait for a place, and train without the lease.
            if not self._fit.is_over and self._cluster.address != "local":
                self._control.wait_for_controller(_CONTROLLER_WAIT_S)
            self._fit.close(self.state.controller)
        self._control.close()
        self._node.close()

    def _step(self) -> None:
        self._run.check_lease()
        self._check_ray()
        if self._control.look():
            self._take_state()
        if self._run.stop.is_set():
            self._control.stop()
            if self._stop_deadline_s is None:
                self._stop_deadline_s = time.monotonic() + self._cluster.grace_period_s
        self._check_start()
        self._tell()

    def _take_state(self) -> None:
        state = self.state
        for line in state.log:
            tell_worker_record(line)
        self._metrics.take(state, self._num_wanted)
        if state.error is not None:
            raise state.error
        if state.num_losses > self._num_losses:
            self._num_losses = state.num_losses
            logger.warning("%s; the workers start again after the newest checkpoint", state.reason)
        if state.num_resizes > self._num_resizes:
            self._num_resizes = state.num_resizes
            logger.warning(
                "%s: the workers start again, and steps after the newest checkpoint (%d of %d done) are made again",
                state.reason,
                state.pulse.checkpoint_step,
                state.pulse.step,
            )
        if state.num_failed_starts >= _MAX_FAILED_STARTS:
            raise PoolFailed(f"no worker can be started, {state.num_failed_starts} tries in a row: {state.reason}")
        if state.is_ready:
            self._waiting_since_s = None
        elif self._waiting_since_s is None or state.attempt != self._attempt:
            self._waiting_since_s = time.monotonic()
        self._attempt = state.attempt

    def _check_ray(self) -> None:
        """Raises ClusterLost if the Ray that this process started, or its node of a joined one, has died."""
        self._ray.check()
        self._node.check()

    def _check_start(self) -> None:
        """Raises PoolFailed if workers take too long to load.

        After a loss, the time before they begin to is not counted where a cluster is joined: its nodes may come back.
        """
        if self._waiting_since_s is None:
            return
        is_waiting_for_nodes = self.state.num_losses > 0 and not self.state.is_loading
        if is_waiting_for_nodes and self._cluster.address != "local":
            return
        limit = self._cluster.start_timeout_s
        if time.monotonic() - self._waiting_since_s > limit:
            raise PoolFailed(
                f"not every worker had loaded what it needs within {limit:g} s; raise cluster.start_timeout_s."
                if self.state.is_loading
                else f"Ray had no place for all workers within {limit:g} s; lower cluster.num_workers, "
                "cluster.cpus_per_worker or cluster.gpus_per_worker, or raise cluster.start_timeout_s for later nodes."
            )

    def _is_late(self) -> bool:
        """Whether the run was stopped and workers need no more time, or have had it."""
        if self._stop_deadline_s is None:
            return False
        if not self.state.is_ready:
            return True  # nothing would be lost
        if time.monotonic() < self._stop_deadline_s:
            return False
        logger.warning(
            "the last checkpoint was not stored within %g s (cluster.grace_period_s); the steps since step %d will be "
            "made again",
            self._cluster.grace_period_s,
            self.state.pulse.checkpoint_step,
        )
        return True

    def _settle(self) -> None:
        """What Ray Train ended with."""
        if self._fit is None or not self._fit.is_over:
            return
        error = self._fit.error
        if error is None:
            self._control.look_again(_LOSS_WAIT_S)
            self._take_state()
            self._tell(force=True)
        elif self._run.stop.is_set():
            logger.warning("Ray Train ended before the last checkpoint was stored")
        else:
            self._explain(error)

    def _explain(self, error: BaseException) -> None:
        from tasks.training.ray_train import describe_failure

        deadline = time.monotonic() + _LOSS_WAIT_S
        while time.monotonic() < deadline:
            self._check_ray()
            time.sleep(_TICK_S)
        self._control.look_again(_LOSS_WAIT_S)
        self._take_state()
        reason = describe_failure(error)
        if reason is None:
            lines = str(error).strip().splitlines() or [""]
            raise ClusterLost(
                f"Ray Train gave up ({type(error).__name__}: {lines[0][:300]}); its controller or this process's node "
                "of Ray has died. Running again continues after the newest checkpoint."
            ) from error
        raise PoolFailed(
            f"workers failed more often than cluster.max_failures={self._cluster.max_failures} allows; the last time: "
            f"{reason}. Everything until step {self.state.pulse.checkpoint_step} is stored; remove the cause and run "
            "again."
        ) from error

    def _tell(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._run.on_progress is None or (now - self._told_s < _PROGRESS_PERIOD_S and not force):
            return
        self._told_s = now
        self._run.on_progress(_progress(self._run.plan, self.state))


def _progress(plan: TrainingPlan, state: ControlState) -> TrainingProgress:
    samples, training_s = _rate(state)
    rate = samples / training_s if training_s else 0.0
    pulse = state.pulse
    left = (plan.num_steps - pulse.step) * plan.config.batch_size
    return TrainingProgress(
        phase=pulse.phase,
        step=pulse.step,
        num_steps=plan.num_steps,
        checkpoint_step=pulse.checkpoint_step,
        loss=pulse.loss,
        grad_norm=pulse.grad_norm,
        lr=pulse.lr,
        samples_per_s=rate,
        eta_s=left / rate if rate else None,
        num_workers=state.num_workers if state.is_ready else 0,
        num_restarts=state.num_losses,
    )


def _rate(state: ControlState) -> tuple[int, float]:
    """Samples that were trained and the seconds that took, over all attempts."""
    return state.samples + state.pulse.samples, state.training_s + state.pulse.training_s


def _plan_workers(cluster: TrainingClusterConfig, ray_cluster: Cluster, plan: TrainingPlan) -> WorkerPlan:
    """Every worker needs a sample of each batch. Raises ConfigurationError where the configuration asks for more."""
    workers = plan_workers(cluster, ray_cluster.nodes, worker_memory_bytes(plan.model.model))
    batch_size = plan.config.batch_size
    if cluster.num_workers > batch_size:
        raise ConfigurationError(
            f"cluster.num_workers is {cluster.num_workers}, but training.batch_size is {batch_size}: some workers "
            "would have no sample; lower one or raise the other."
        )
    return dataclasses.replace(workers, count=min(workers.count, batch_size))


def _new_record(run: TrainingRun) -> RunRecord:
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
        fingerprints={"run": plan.digest, **plan.fingerprints},
        versions=package_versions(_PACKAGES),
    )
