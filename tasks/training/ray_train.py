"""Ray Train (V2) in a thread of its own, so that the driver can watch it and end it whatever state it is in."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
import ray
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    ResizingState,
    RestartingState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError

from ezigen.config import MonitoringConfig, TrainingClusterConfig
from tasks.cluster import WorkerPlan
from tasks.cluster.environment import SecretVariables
from tasks.storage.filesystems import describe_error, open_filesystem
from tasks.storage.folder import OutputFolder
from tasks.training.checkpoints import FOLDER, StoredCheckpoint

_SNAPSHOT = f"{FOLDER}/checkpoint_manager_snapshot.json"
_JOIN_S = 10.0
_PLACE_S = 30.0
_POLL_S = 1.0
"""How often Ray Train looks at its workers; a report of theirs counts once it has looked."""


class RunStorage(pyarrow.fs.FSSpecHandler):  # type: ignore[misc]
    """The store of a run for Ray Train: pickled as its options, and opened in the process that uses it.

    Ray Train's controller deletes checkpoints and writes its snapshot, so it needs the credentials as workers do.
    """

    def __init__(self, output: OutputFolder, secrets: SecretVariables) -> None:
        secrets.apply()
        self._made_of = (output, secrets)
        options = output.locations.storage_options if output.root.scheme == "s3" else None
        super().__init__(open_filesystem(output.root.scheme, options))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of


class ControllerWatch(ControllerCallback):
    """Runs in Ray Train's controller: tells the run's control actor who it is, and why it ends workers."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ARG002 - Ray's signature
        """Called by Ray Train."""
        self._control.controller_started.remote(ray.get_runtime_context().current_actor)

    def after_controller_state_update(
        self,
        previous_state: TrainControllerState,  # noqa: ARG002 - Ray's signature
        current_state: TrainControllerState,
    ) -> None:
        """Called by Ray Train."""
        if isinstance(current_state, RestartingState | ReschedulingState):
            error = current_state.training_failed_error
            cause = getattr(error, "controller_failure", None)
            self._control.group_lost.remote(
                describe_loss(error),
                was_started=isinstance(current_state, RestartingState),
                is_waiting=isinstance(cause, WorkerGroupStartupTimeoutError),
            )
        elif isinstance(current_state, ResizingState) and isinstance(current_state.scaling_decision, ResizeDecision):
            self._control.group_resized.remote(current_state.scaling_decision.num_workers)


def describe_loss(error: Exception) -> str:
    """Why a group of workers was lost, in one line.

    When one worker dies, the others fail because it does not answer any more: a death is told before an exception.
    """
    failures: dict[int, Exception] = dict(getattr(error, "worker_failures", {}))
    if not failures:
        return describe_error(getattr(error, "controller_failure", None) or error)
    deaths = [rank for rank, cause in failures.items() if isinstance(cause, WorkerHealthCheckFailedError)]
    rank = min(deaths or failures)
    if deaths:
        return f"worker {rank} died (killed, out of memory, or its node was lost)"
    lines = [line for line in str(failures[rank]).strip().splitlines() if line.strip()]
    return f"worker {rank} failed: {lines[-1][:300] if lines else type(failures[rank]).__name__}"


@dataclass(frozen=True)
class FitRequest:
    """What Ray Train is asked for. `work` is called in every worker, without arguments."""

    work: Callable[[], None]
    output: OutputFolder
    workers: WorkerPlan
    cluster: TrainingClusterConfig
    monitoring: MonitoringConfig


class Fit:
    """One call of Ray Train. `close` kills its controller, and with it the workers, whatever they are doing."""

    def __init__(self, request: FitRequest, control: Any) -> None:
        self.error: BaseException | None = None
        self._variables = contextlib.ExitStack()
        self._variables.enter_context(_ray_train_variables(request.cluster))
        self._trainer = _make_trainer(request, control)
        self._thread = threading.Thread(target=self._run, name="ray-train", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether Ray Train has returned; what it raised is in `error`."""
        return not self._thread.is_alive()

    def close(self, controller: Any) -> None:
        """Ends the workers. Does nothing where Ray Train has ended by itself, or where Ray has gone."""
        if not self.is_over and controller is not None:
            with contextlib.suppress(Exception):
                ray.kill(controller)
        self._thread.join(_JOIN_S)
        self._variables.close()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 - it is told in the driver's own thread
            self.error = error


def write_snapshot(output: OutputFolder, checkpoints: Sequence[StoredCheckpoint]) -> None:
    """Tells Ray Train which checkpoints there are, oldest first; it goes on from the last one.

    Its own record may be cut off, older than the last checkpoint, or of another version of Ray: the folders decide.
    """
    stored = [_TrainingResultState(checkpoint_dir_name=one.name, metrics={"step": one.step}) for one in checkpoints]
    state = _CheckpointManagerState(
        checkpoint_results=stored,
        checkpoint_report_indices=list(range(len(stored))),
        latest_checkpoint_result=stored[-1] if stored else None,
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(stored),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    output.write(_SNAPSHOT, state.model_dump_json().encode())


def _make_trainer(request: FitRequest, control: Any) -> TorchTrainer:
    output, workers, cluster = request.output, request.workers, request.cluster
    resources = {"CPU": workers.num_cpus}
    if workers.num_gpus:
        resources["GPU"] = workers.num_gpus
    is_elastic = 0 < cluster.min_workers < workers.count
    storage = RunStorage(output, SecretVariables.of_process())
    return TorchTrainer(
        request.work,
        # Two workers on one GPU are more than NCCL allows.
        torch_config=TorchConfig(backend="gloo" if workers.num_gpus < 1 else "nccl"),
        scaling_config=ScalingConfig(
            num_workers=(cluster.min_workers, workers.count) if is_elastic else workers.count,
            use_gpu=bool(workers.num_gpus),
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=cluster.resize_interval_s,
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # ray.train shows version 1 to type checkers
            name=FOLDER,
            storage_path=output.root.path,
            storage_filesystem=pyarrow.fs.PyFileSystem(storage),
            failure_config=FailureConfig(max_failures=cluster.max_failures, max_preemption_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=request.monitoring.num_checkpoints),
            callbacks=[ControllerWatch(control)],  # type: ignore[list-item]  # one of its internal kind
        ),
    )


@contextlib.contextmanager
def _ray_train_variables(cluster: TrainingClusterConfig) -> Iterator[None]:
    """What Ray Train takes from the environment alone. What the user has set stays; afterwards it is as before."""
    defaults = {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": f"{_POLL_S:g}",
        # After a loss Ray Train may for a moment count on nodes that are gone, and would wait for them so long.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{min(_PLACE_S, cluster.start_timeout_s):g}",
        # Relative locations of models and data mean the same folder as in the driver.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def describe_failure(error: BaseException) -> str | None:
    """Why Ray Train gave up for good, if it was for its workers; None if it was for Ray itself."""
    if isinstance(error, WorkerGroupError | PreemptionError):
        return describe_loss(error)
    return None
