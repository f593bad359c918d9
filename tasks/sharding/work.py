"""What the engine asks of the work that it distributes, and how it says that some of it failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tasks.sharding.report import ShardReport


class ShardWork(Protocol):
    """A picklable object; every worker process gets a copy. Its constructor is cheap and opens nothing."""

    def open(self) -> None:
        """Loads what all shards need; called once in every worker process, first.

        ConfigurationError ends the run with its own words; other errors are tried again in a new process.
        """

    def make(self, shard: str) -> ShardReport:
        """Makes one shard and stores it: its objects one by one atomically, the completion object last.

        Doing it again stores the same bytes. What is wrong with one item belongs into the report's `refused`; an
        exception fails the shard, and with it the run, after all other shards are done.
        """


@dataclass(frozen=True)
class ShardFailure:
    """A shard that could not be made. `worker_died`: it took its process along every time it was tried."""

    shard: str
    message: str
    worker_died: bool = False


class ShardsFailed(RuntimeError):  # noqa: N818
    """Some shards could not be made; all others are stored. Running again tries them again."""

    def __init__(self, failures: Sequence[ShardFailure]) -> None:
        self.failures = tuple(failures)
        first = self.failures[0]
        others = f" and {len(self.failures) - 1} others" if len(self.failures) > 1 else ""
        super().__init__(
            f"shard {first.shard}{others} could not be made: {first.message.rstrip('.')}. Everything else is stored; "
            "remove the cause and run again."
        )
