"""What runs inside Ray's processes: load once, one verb."""

from tasks.actors.catalog import CatalogWorker, ItemReport, WorkerSetup
from tasks.actors.records import LogLine

__all__ = ["CatalogWorker", "ItemReport", "LogLine", "WorkerSetup"]
