"""What a run would compute on, as far as it can be known before Ray is asked."""

import os
from dataclasses import dataclass
from typing import Literal, TypeVar

from ezigen.config import ConfigurationError, RayConfig, StackConfig

ClusterT = TypeVar("ClusterT", bound=RayConfig)

FLOP_PER_S = {"gpu": 400e12, "cpu": 0.1e12}
"""What is got done of the networks: by an H200 in bf16, and by one core in fp32. Others differ several times."""


@dataclass(frozen=True)
class Hardware:
    """Workers of one kind. `assumption` says what only the run itself will know."""

    device: Literal["gpu", "cpu"] = "gpu"
    num_workers: int = 1
    share: float = 1.0
    """GPUs (at most one) or cores that a worker computes with."""
    assumption: str = ""

    @property
    def flop_per_s(self) -> float:
        """Of one worker."""
        return FLOP_PER_S[self.device] * self.share

    def describe(self) -> str:
        """2 cpu workers at 0.1 TFLOP/s each, assuming that ..."""
        kind = f"{self.num_workers} {self.device} worker{'s' if self.num_workers > 1 else ''}"
        rate = f"{self.flop_per_s / 1e12:g} TFLOP/s" + (" each" if self.num_workers > 1 else "")
        return f"{kind} at {rate}" + (f", assuming {self.assumption}" if self.assumption else "")


def find_hardware(model: StackConfig, cluster: RayConfig) -> Hardware:
    """What the run would use: `model.device` and `cluster.accelerator`, and on this machine what it has.

    Of a cluster that is joined nothing more is known: "auto" is taken for GPUs, and workers that are not counted for
    one. Both is said.
    """
    assumptions = []
    device = _known_device(model, cluster)
    if device is None:
        device = "gpu"
        assumptions.append(f"that {cluster.address} has GPUs (cluster.accelerator is auto)")
    share = cluster.cpus_per_worker if device == "cpu" else cluster.gpus_per_worker
    num_workers = cluster.num_workers
    if not num_workers and cluster.address == "local":
        num_workers = max(1, int(_count_here(device) / share + 1e-9))
    elif not num_workers:
        num_workers = 1
        assumptions.append("one worker (cluster.num_workers is 0: as many as the cluster has place for)")
    computing = float(max(1, int(share))) if device == "cpu" else min(1.0, share)
    return Hardware(device, num_workers, computing, " and ".join(assumptions))


def fit_cluster(cluster: ClusterT, model: StackConfig) -> ClusterT:
    """The cluster's configuration with the accelerator that `model.device` asks for.

    Raises ConfigurationError if both name one, and not the same.
    """
    if model.device == "auto":
        return cluster
    accelerator = "gpu" if model.device == "cuda" else "cpu"
    if cluster.accelerator not in ("auto", accelerator):
        raise ConfigurationError(
            f'model.device is "{model.device}", but cluster.accelerator is "{cluster.accelerator}"; '
            'set one of them to "auto".'
        )
    return cluster.model_copy(update={"accelerator": accelerator})


def network_dtype(model: StackConfig, cluster: RayConfig) -> str:
    """The precision that the networks of a run have: as configured, or fp32 on CPUs and bf16 on GPUs."""
    if model.dtype != "auto":
        return model.dtype
    return "bf16" if find_hardware(model, cluster).device == "gpu" else "fp32"


def _known_device(model: StackConfig, cluster: RayConfig) -> Literal["gpu", "cpu"] | None:
    if model.device == "cpu" or cluster.accelerator == "cpu":
        return "cpu"
    if model.device == "cuda" or cluster.accelerator == "gpu":
        return "gpu"
    if cluster.address == "local":
        return "gpu" if _count_here("gpu") else "cpu"
    return None


def _count_here(device: Literal["gpu", "cpu"]) -> int:
    """GPUs or cores of this machine that this process may use."""
    if device == "cpu":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import torch

    return torch.cuda.device_count()
