"""Training on nodes that go and come, in a process of its own.

`python -m tests.training.nodes FEATURES ROOT MODEL announced|own|joining`: another node than the driver's is announced
to go and then goes, the driver's own node dies without a word, or another node joins.
"""

import contextlib
import json
import logging
import math
import sys
import threading
import time

import ray
from ray.cluster_utils import Cluster

from ezigen.config import TrainingClusterConfig
from tasks.cluster import ClusterLost, connect
from tasks.training.outcome import TrainingProgress
from tests.training.stage import Stage, Stored

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
NUM_STEPS = 100_000
DEADLINE_S = 60
REMOVE_AFTER_S = 4.0
"""Ray Train hears of a notice within a second or two; a node that goes before is an ordinary loss to it."""


class NodeLoss:
    """Announces the loss once both workers train, takes the node away some seconds after the checkpoint that this led
    to, then stops.
    """

    def __init__(self, head: Cluster, second) -> None:
        self.head, self.second = head, second
        self.stop = threading.Event()
        self.noticed_at = 0
        self.remove_at_s = math.inf
        self.found: dict[str, int] = {}

    def __call__(self, progress: TrainingProgress) -> None:
        if not self.noticed_at and progress.num_workers == 2 and progress.step > 2:
            self.noticed_at = progress.step
            announce(self.second.node_id)
        if self.noticed_at and "saved" not in self.found and progress.checkpoint_step:
            self.found |= {"saved": progress.checkpoint_step, "noticed": self.noticed_at}
            self.remove_at_s = time.monotonic() + REMOVE_AFTER_S
        if time.monotonic() > self.remove_at_s:
            self.remove_at_s = math.inf
            self.head.remove_node(self.second, allow_graceful=False)
        if progress.num_restarts and progress.num_workers == 1 and progress.step > self.found["saved"] + 2:
            self.found |= {"restarts": progress.num_restarts}
            self.stop.set()


class NodeGain:
    """Adds a node once a lone worker has stored something, and stops some steps after there are two of them."""

    def __init__(self, head: Cluster) -> None:
        self.head = head
        self.stop = threading.Event()
        self.found: dict[str, int] = {}
        self.phases: set[str] = set()

    def __call__(self, progress: TrainingProgress) -> None:
        self.phases.add(progress.phase)
        if "alone" not in self.found and progress.num_workers == 1 and progress.checkpoint_step:
            self.found["alone"] = progress.step
            self.head.add_node(**NODE)
        if progress.num_workers == 2:
            begun = self.found.setdefault("together", progress.step)
            if progress.step > begun + 20:
                self.stop.set()


def announce(node_id: str) -> None:
    """What a cloud's notice of a preemption becomes in Ray."""
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + DEADLINE_S) * 1000)
    client = ray._private.worker.global_worker.gcs_client
    accepted, message = client.drain_node(node_id, reason, "preemption", deadline_ms)
    assert accepted, message


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    features, root, model, which = sys.argv[1:]
    head = Cluster(initialize_head=True, head_node_args=NODE)
    # No checkpoint but the one for the notice and the last one.
    stage = Stage(features, root, model, {"num_steps": NUM_STEPS}, {"checkpoint_every": NUM_STEPS, "validate_every": 0})
    cluster = TrainingClusterConfig(address=head.address, num_workers=2, min_workers=1, max_failures=0)
    with connect(cluster):
        if which == "joining":
            found = gain(features, root, model, cluster, head)
        else:
            second = head.add_node(**NODE)  # only now, so that the driver belongs to the first one
            found = (
                lose_announced(stage, cluster, head, second) if which == "announced" else lose_own(stage, cluster, head)
            )
    print(json.dumps(found))
    sys.stdout.flush()
    with contextlib.suppress(Exception):
        head.shutdown()


def lose_announced(stage: Stage, cluster: TrainingClusterConfig, head: Cluster, second) -> dict:
    loss = NodeLoss(head, second)
    outcome = stage.run(cluster=cluster, on_progress=loss, stop=loss.stop)
    stored = Stored(stage.plan().output)
    steps = stored.log.column("step").to_pylist()
    found = {"state": outcome.state, "step": outcome.step, "workers": outcome.num_workers, "kept": stored.steps}
    return {**loss.found, **found, "is_whole": steps == list(range(1, outcome.step + 1))}


def gain(features: str, root: str, model: str, cluster: TrainingClusterConfig, head: Cluster) -> dict:
    stage = Stage(features, root, model, {"num_steps": NUM_STEPS}, {"checkpoint_every": 50, "validate_every": 0})
    growth = NodeGain(head)
    cluster = cluster.model_copy(update={"resize_interval_s": 1.0})
    outcome = stage.run(cluster=cluster, on_progress=growth, stop=growth.stop)
    found = {"state": outcome.state, "step": outcome.step, "workers": outcome.num_workers}
    return {**growth.found, **found, "restarts": outcome.num_restarts, "phases": sorted(growth.phases)}


def lose_own(stage: Stage, cluster: TrainingClusterConfig, head: Cluster) -> dict:
    def kill_raylet(progress: TrainingProgress) -> None:
        if progress.step > 2:
            head.head_node.all_processes["raylet"][0].process.kill()

    try:
        stage.run(cluster=cluster, on_progress=kill_raylet)
    except ClusterLost as error:
        return {"error": str(error)}
    return {}


if __name__ == "__main__":
    main()
