"""What lies at a location: pairs, a feature store, the output of a catalog run, an adapter. Looks, never writes."""

from tasks.inspection.location import inspect_item, inspect_location
from tasks.inspection.view import SavedPicture, Table, View

__all__ = ["SavedPicture", "Table", "View", "inspect_item", "inspect_location"]
