"""What a run tells the outside while it works: metrics for Prometheus, log records for people and machines."""

from tasks.monitoring.metrics import METRICS, Metric, RunMetrics

__all__ = ["METRICS", "Metric", "RunMetrics"]
