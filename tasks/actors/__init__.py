"""What runs inside Ray's processes: load once, one verb."""

from tasks.actors.catalog import BatchReport, CatalogWorker, WorkerSetup
from tasks.actors.records import LogLine

__all__ = ["BatchReport", "CatalogWorker", "LogLine", "WorkerSetup"]
