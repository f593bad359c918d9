"""Everything stored: where it lies, how it is written so that nobody sees half of it, and how it is read back."""

from tasks.storage.compaction import CompactionSummary, compact_results, remove_leftovers
from tasks.storage.folder import OutputFolder
from tasks.storage.lease import Lease, LeaseHeld, LeaseLost
from tasks.storage.ledger import LedgerCounts, ResultsLedger
from tasks.storage.locations import Location, Locations, locate
from tasks.storage.output import RunOutput, StoredImage
from tasks.storage.run_record import RunRecord, RunState, RunSummary, new_run_id
from tasks.storage.writing import write_atomic

__all__ = [
    "CompactionSummary",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "LedgerCounts",
    "Location",
    "Locations",
    "OutputFolder",
    "ResultsLedger",
    "RunOutput",
    "RunRecord",
    "RunState",
    "RunSummary",
    "StoredImage",
    "compact_results",
    "locate",
    "new_run_id",
    "remove_leftovers",
    "write_atomic",
]
