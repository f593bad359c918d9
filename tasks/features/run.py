"""The run of precompute_features: from a plan to a complete feature store, on Ray."""

import threading
from collections.abc import Callable

from ezigen.config import RayConfig
from tasks.features.outcome import FeatureOutcome
from tasks.features.plan import FeaturePlan
from tasks.sharding import ShardProgress
from tasks.storage import Locations, OutputFolder
from tasks.storage.lease import Lease


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
    stored; ConfigurationError, ClusterLost or LeaseLost when the run cannot go on.
    """
    raise NotImplementedError


def index_features(plan: FeaturePlan, output: OutputFolder, *, check: Callable[[], None] = lambda: None) -> str:
    """Writes index.parquet and manifest.json, unless they are there, and returns the manifest's location.

    For a stage of its own; `run_features` has done it already. Raises ConfigurationError if a shard is missing.
    """
    raise NotImplementedError
