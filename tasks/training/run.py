"""The run of train_adapter: from a plan to final weights, on Ray Train."""

import threading
from collections.abc import Callable

from ezigen.config import MonitoringConfig, TrainingClusterConfig
from tasks.storage import Locations, OutputFolder
from tasks.storage.lease import Lease
from tasks.training.outcome import TrainingOutcome, TrainingProgress
from tasks.training.plan import TrainingPlan


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
    raise NotImplementedError
