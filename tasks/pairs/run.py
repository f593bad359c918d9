"""The run of build_pairs: from a plan to stored pairs, on Ray."""

import threading
from collections.abc import Callable

from ezigen.config import RayConfig
from tasks.pairs.outcome import PairOutcome
from tasks.pairs.plan import PairPlan
from tasks.sharding import ShardProgress
from tasks.storage import Locations, OutputFolder
from tasks.storage.lease import Lease


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
    LeaseLost when the run cannot go on.
    """
    raise NotImplementedError
