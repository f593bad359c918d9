"""What a pool asks of a worker: load once, run items side by side, give back what has not begun."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

ItemT_contra = TypeVar("ItemT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)


@dataclass(frozen=True)
class Withdrawn:
    """The answer to an item that the worker gave back without having begun it."""


class Worker(Protocol[ItemT_contra, ResultT_co]):
    """A class that becomes a Ray actor with threads. Its constructor is cheap; `load` does what takes long.

    It needs a thread for every item that it may hold, and one more for `withdraw`: `max_concurrency` is at least
    `num_slots + num_ahead + 1`.
    """

    def load(self) -> None:
        """Called once, first. ConfigurationError means that it can never work; other errors are tried again."""

    def run(self, item: ItemT_contra) -> ResultT_co | Withdrawn:
        """One item, from arrival to result; called at the same time for every item that the worker holds.

        What goes wrong with an item belongs into the result. An exception concerns that item alone, which is tried
        once more without company; WorkerBroken concerns the process.
        """

    def withdraw(self, max_items: int) -> int:
        """Gives up to so many items back that have not really begun; `run` answers Withdrawn for each. How many."""


class WorkerBroken(Exception):  # noqa: N818
    """The process cannot be trusted with another item, as after a CUDA fault. It is replaced."""
