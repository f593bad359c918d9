"""How many workers a run gets, without Ray."""

import pytest

from ezigen.config import ClusterConfig, ConfigurationError
from tasks.cluster.placement import WorkerPlan, plan_workers

CPU_NODE = {"CPU": 4.0, "memory": 16e9}
GPU_NODE = {"CPU": 16.0, "GPU": 2.0, "memory": 128e9}
DRIVER_NODE = {"memory": 8e9}


def joined(**changes) -> ClusterConfig:
    return ClusterConfig(address="head:6379", **changes)


def test_every_core_without_gpus():
    assert plan_workers(ClusterConfig(), [CPU_NODE]) == WorkerPlan(4, 1.0, 0.0, "cpu")
    assert plan_workers(ClusterConfig(cpus_per_worker=3), [CPU_NODE, CPU_NODE]).count == 2


def test_every_gpu_where_there_are_some():
    assert plan_workers(joined(), [DRIVER_NODE, GPU_NODE, GPU_NODE, CPU_NODE]) == WorkerPlan(4, 1.0, 1.0, "cuda")
    assert plan_workers(joined(gpus_per_worker=0.25), [GPU_NODE]).count == 8
    assert plan_workers(joined(gpus_per_worker=0.6), [GPU_NODE]).count == 2
    assert plan_workers(joined(gpus_per_worker=2), [GPU_NODE]).count == 1
    assert plan_workers(joined(cpus_per_worker=16), [GPU_NODE]).count == 1
    assert plan_workers(joined(accelerator="cpu"), [GPU_NODE]).count == 16


def test_memory_bounds_the_automatic_number_only():
    assert plan_workers(ClusterConfig(), [CPU_NODE], worker_memory_bytes=int(6e9)).count == 2
    assert plan_workers(ClusterConfig(), [CPU_NODE], worker_memory_bytes=int(60e9)).count == 1
    assert plan_workers(ClusterConfig(num_workers=4), [CPU_NODE], worker_memory_bytes=int(6e9)).count == 4


def test_a_named_number_is_kept_where_nodes_may_join():
    assert plan_workers(joined(num_workers=64, accelerator="gpu"), [DRIVER_NODE]) == WorkerPlan(64, 1.0, 1.0, "cuda")
    assert plan_workers(joined(num_workers=3), [DRIVER_NODE]) == WorkerPlan(3, 1.0, 0.0, "cpu")


def test_threads_follow_the_cores():
    assert plan_workers(ClusterConfig(cpus_per_worker=2.5), [CPU_NODE]).num_threads == 2
    assert plan_workers(ClusterConfig(cpus_per_worker=0.25), [CPU_NODE]).num_threads == 1


@pytest.mark.parametrize(
    ("config", "node", "field"),
    [
        (ClusterConfig(accelerator="gpu"), CPU_NODE, "accelerator"),
        (ClusterConfig(accelerator="gpu", num_workers=1), CPU_NODE, "accelerator"),
        (joined(accelerator="gpu"), CPU_NODE, "num_workers"),
        (ClusterConfig(num_workers=3), GPU_NODE, "num_workers"),
        (joined(cpus_per_worker=8), CPU_NODE, "cpus_per_worker"),
        (joined(), DRIVER_NODE, "num_workers"),
    ],
)
def test_what_can_never_be_placed_is_refused(config, node, field):
    with pytest.raises(ConfigurationError, match=field):
        plan_workers(config, [node])
