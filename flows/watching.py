"""How whoever started a run in this process follows it; flows take only parameters, so the watcher comes by context."""

from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tasks.catalog.plan import CatalogPlan
    from tasks.catalog.progress import Progress


class RunWatcher(Protocol):
    """Is told what a catalog run does, from the run's own thread."""

    def planned(self, plan: "CatalogPlan") -> None:
        """The plan is made."""

    def progressed(self, progress: "Progress") -> None:
        """Some items have ended, or a moment has passed."""


current_watcher: ContextVar[RunWatcher | None] = ContextVar("current_watcher", default=None)
