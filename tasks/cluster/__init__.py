"""Ray: connecting to it, placing workers on it, and a pool of them that survives their deaths."""

from tasks.cluster.connection import Cluster, ClusterLost, connect
from tasks.cluster.placement import WorkerPlan, plan_workers

__all__ = ["Cluster", "ClusterLost", "WorkerPlan", "connect", "plan_workers"]
