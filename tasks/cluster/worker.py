"""What a pool asks of a worker: load once, then one verb."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

ItemT_contra = TypeVar("ItemT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Worker(Protocol[ItemT_contra, ResultT_co]):
    """A class that becomes a Ray actor. Its constructor is cheap; `load` does what takes long."""

    def load(self) -> None:
        """Called once, first. ConfigurationError means that it can never work; other errors are tried again."""

    def run(self, items: Sequence[ItemT_contra]) -> ResultT_co:
        """One batch. What goes wrong with one item belongs into the result; exceptions concern the batch."""


class BatchTooLarge(Exception):  # noqa: N818
    """The batch did not fit into memory; the worker is well. It comes back in halves."""


class WorkerBroken(Exception):  # noqa: N818
    """The process cannot be trusted with another batch, as after a CUDA fault. It is replaced."""
