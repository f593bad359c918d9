"""How many workers a run gets, and what each of them takes: decided from the configuration and the nodes alone."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ezigen.config import ConfigurationError, RayConfig

NodeResources = Mapping[str, float]
"""What Ray says about one node: "CPU", "GPU", "memory" (bytes)."""


@dataclass(frozen=True)
class WorkerPlan:
    """A number of equal workers and what Ray reserves for each."""

    count: int
    num_cpus: float
    num_gpus: float
    device: Literal["cpu", "cuda"]

    @property
    def num_threads(self) -> int:
        """Threads that a worker computes with."""
        return max(1, int(self.num_cpus))


def plan_workers(config: RayConfig, nodes: Sequence[NodeResources], worker_memory_bytes: int = 0) -> WorkerPlan:
    """The workers of a run on these nodes.

    A number that the configuration names is taken as it is when a cluster is joined, because more nodes may come.
    Without one, every GPU gets a worker, or every core where there is no GPU, as far as memory reaches when
    `worker_memory_bytes` says what one takes. Raises ConfigurationError for what this cluster can never place.
    """
    device = _choose_device(config, nodes)
    num_gpus = config.gpus_per_worker if device == "cuda" else 0.0
    plan = WorkerPlan(config.num_workers, config.cpus_per_worker, num_gpus, device)
    if config.num_workers:
        places = sum(_places(node, plan) for node in nodes)
        if config.address == "local" and places < config.num_workers:
            raise ConfigurationError(_too_many(places, plan))
        return plan
    places = sum(min(_places(node, plan), _places_in_memory(node, worker_memory_bytes)) for node in nodes)
    if places == 0:
        raise ConfigurationError(_no_place(config, nodes, plan))
    return replace(plan, count=places)


def _choose_device(config: RayConfig, nodes: Sequence[NodeResources]) -> Literal["cpu", "cuda"]:
    if config.accelerator == "cpu":
        return "cpu"
    has_gpus = any(node.get("GPU", 0) > 0 for node in nodes)
    if config.accelerator == "auto":
        return "cuda" if has_gpus else "cpu"
    if not has_gpus and (config.address == "local" or not config.num_workers):
        raise ConfigurationError(
            f'cluster.accelerator is "gpu", but Ray at {config.address!r} has no GPU; '
            'set it to "auto" or "cpu", or name cluster.num_workers if GPU nodes join later.'
        )
    return "cuda"


def _places(node: NodeResources, plan: WorkerPlan) -> int:
    by_cpu = math.floor(node.get("CPU", 0.0) / plan.num_cpus + 1e-9)
    if not plan.num_gpus:
        return by_cpu
    gpus = node.get("GPU", 0.0)
    if plan.num_gpus > 1:
        return min(by_cpu, math.floor(gpus / plan.num_gpus + 1e-9))
    # A share of a GPU cannot be put together from two: 0.6 leaves place for one worker on each.
    return min(by_cpu, math.floor(gpus) * math.floor(1.0 / plan.num_gpus + 1e-9))


def _places_in_memory(node: NodeResources, worker_memory_bytes: int) -> int:
    if not worker_memory_bytes or "memory" not in node:
        return sys.maxsize
    return max(1, int(node["memory"] // worker_memory_bytes))


def _too_many(places: int, plan: WorkerPlan) -> str:
    return (
        f"cluster.num_workers is {plan.count}, but this machine has place for {places} of {plan.num_cpus:g} cores and "
        f"{plan.num_gpus:g} GPUs each; lower it, cluster.cpus_per_worker or cluster.gpus_per_worker."
    )


def _no_place(config: RayConfig, nodes: Sequence[NodeResources], plan: WorkerPlan) -> str:
    largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU")}
    return (
        f"no node of Ray at {config.address!r} has place for a worker of {plan.num_cpus:g} cores and "
        f"{plan.num_gpus:g} GPUs (the largest has {largest['CPU']:g} and {largest['GPU']:g}); "
        "lower cluster.cpus_per_worker or cluster.gpus_per_worker, or name cluster.num_workers if nodes join later."
    )
