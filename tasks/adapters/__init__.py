"""Published adapters: versions that never change, aliases that point to them, and copies on the machines that use them.

Imports no torch: a plan has to know which version an alias means.
"""

from tasks.adapters.location import find_adapter, is_reference, local_adapter, pin_adapter
from tasks.adapters.registry import PublishedAdapter, Registry

__all__ = ["PublishedAdapter", "Registry", "find_adapter", "is_reference", "local_adapter", "pin_adapter"]
