"""What every run is, whatever it makes: a plan, the work, what is written at its end, a summary. Needs no Prefect."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ezigen.config import RayConfig
from flows.progress import RunProgress
from flows.stopping import StopRequest
from tasks.storage import OutputFolder

if TYPE_CHECKING:
    from tasks.storage.lease import Lease


@dataclass(frozen=True, kw_only=True)
class Summary(ABC):
    """What a run made, and why it ended. `stopped_by` is the number of a signal."""

    failure: str = ""
    """Why the run counts as failed although it came to its end; empty if it does not."""
    stopped_by: int | None = None

    @property
    @abstractmethod
    def stopped(self) -> bool:
        """Whether the run ended before everything was done, because it was asked to."""

    @abstractmethod
    def describe(self) -> str:
        """The end of the run in one line."""

    @abstractmethod
    def print_details(self) -> None:
        """What the command line shows below that line."""


class UnfinishedRun(RuntimeError):  # noqa: N818
    """The run was stopped, or too much of it failed. What is done is stored; the summary has the numbers."""

    def __init__(self, message: str, summary: Summary) -> None:
        super().__init__(message)
        self.summary = summary


class Job(ABC):
    """A run on an output that the caller holds. No dataclass on purpose: Prefect walks through those that tasks get."""

    artifact_prefix: str
    """What the names of the run's artifacts start with."""

    def __init__(self, output: OutputFolder, cluster: RayConfig, if_busy: Literal["refuse", "wait"]) -> None:
        self.output = output
        self.stop = StopRequest()
        self.failure = ""
        self._lease_ttl_s = cluster.lease_ttl_s
        self._if_busy = if_busy
        self._lease: Lease | None = None

    @property
    def name(self) -> str:
        """What people call the run: the last part of its output's location."""
        return last_part(self.output.root_uri)

    def hold_output(self) -> "Lease":
        """The lease that has to be held from before the plan until the last file is written."""
        from tasks.storage.lease import Lease

        self._lease = Lease(self.output, f"run {self.name!r}", self._lease_ttl_s, wait=self._if_busy == "wait")
        return self._lease

    @property
    def lease(self) -> "Lease":
        """The hold on the output, after `hold_output`."""
        if self._lease is None:
            raise RuntimeError("the output is not held")
        return self._lease

    @abstractmethod
    def make_plan(self) -> str:
        """Decides what is to do, without doing it; returns the counts in words."""

    @abstractmethod
    def work(self, on_progress: Callable[[RunProgress], None]) -> None:
        """Does what the plan says is missing. SIGINT and SIGTERM end it in order, see `stop`.

        Too many losses are remembered in `failure`, because the last stage still has to run.
        """

    @abstractmethod
    def summarize(self) -> Summary:
        """The end of the run, after `work`."""


def last_part(uri: str) -> str:
    """The last part of a location."""
    return uri.rstrip("/").rpartition("/")[2] or uri
