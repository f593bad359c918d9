"""What is wrong with annotations, entry by entry: found while they are read, before any picture is opened."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ezigen.pairs import RefusalReason
from tasks.datasets.units import Source

_MAX_CHARS = 500


@dataclass(frozen=True)
class Defect:
    """One entry of an annotation file that nothing can be made of, and why."""

    entry_id: str
    """As its pair's would be, or the beginning of that; annotations[7] for an entry that does not say what it is."""
    source: Source
    group_id: str
    reason: RefusalReason
    message: str
    subject_class: str | None = None


class ReadingLog:
    """Counts what a reader leaves out. What the data set has wrong is given on one by one; nothing is kept here."""

    def __init__(
        self,
        source: Source,
        counts: Counter[RefusalReason] | None = None,
        on_defect: Callable[[Defect], None] | None = None,
    ) -> None:
        self._source: Source = source
        self._counts: Counter[RefusalReason] = Counter() if counts is None else counts
        self._on_defect = on_defect

    def leave_out(self, reason: RefusalReason, num: int = 1) -> None:
        """The selection's choice."""
        if num:
            self._counts[reason] += num

    def refuse(
        self,
        entry_id: str,
        reason: RefusalReason,
        message: str,
        *,
        group_id: str = "",
        subject_class: str | None = None,
    ) -> None:
        """The data set's fault."""
        self._counts[reason] += 1
        if self._on_defect is not None:
            entry, group = (_printable(f"{self._source}/{name}") for name in (entry_id, group_id or entry_id))
            self._on_defect(Defect(entry, self._source, group, reason, _printable(message), subject_class))


def _printable(text: str) -> str:
    """Names come from files that may hold anything."""
    return text[:_MAX_CHARS].encode("utf-8", "backslashreplace").decode()
