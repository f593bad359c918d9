"""How whoever started a run in this process follows it; flows take only parameters, so the watcher comes by context."""

from contextvars import ContextVar
from typing import Protocol

from flows.progress import RunProgress


class RunWatcher(Protocol):
    """Is told what a run does, from the run's own thread."""

    def planned(self, plan: str) -> None:
        """The plan is made; its counts in words."""

    def progressed(self, progress: RunProgress) -> None:
        """Something has ended, or a moment has passed."""


current_watcher: ContextVar[RunWatcher | None] = ContextVar("current_watcher", default=None)
