"""Finding what a person means by an id: the id itself, its beginning, or an error that shows ids like it."""

import heapq
from collections.abc import Iterable
from itertools import takewhile

from ezigen.config import ConfigurationError

MAX_NEAR = 5


def find_id(wanted: str, ids: Iterable[str], what: str, where: str) -> str:
    """The one id that is, or else begins with, what was given; reads the ids once and keeps a few.

    Raises ConfigurationError for none or several, with ids that are like it.
    """
    beginning: set[str] = set()
    nearest: list[tuple[float, str]] = []
    for known in ids:
        if known == wanted:
            return known
        if known.startswith(wanted) and len(beginning) <= MAX_NEAR:
            beginning.add(known)
        entry = (_likeness(wanted, known), known)
        if entry not in nearest:
            heapq.heappush(nearest, entry)
            if len(nearest) > MAX_NEAR:
                heapq.heappop(nearest)
    if wanted and len(beginning) == 1:
        return beginning.pop()
    if beginning:
        shown = ", ".join(sorted(beginning)[:MAX_NEAR]) + (", ..." if len(beginning) > MAX_NEAR else "")
        raise ConfigurationError(f"--id {wanted!r} is the beginning of several {what}s of {where}: {shown}")
    if not nearest:
        raise ConfigurationError(f"--id {wanted!r}: {where} holds no {what} at all.")
    shown = ", ".join(known for _, known in sorted(nearest, reverse=True))
    raise ConfigurationError(f"--id {wanted!r} is no {what} of {where}; near it: {shown}.")


def nearest(wanted: str, known: Iterable[str]) -> list[str]:
    """The few names that are most like the wanted one, the most alike first."""
    return heapq.nlargest(MAX_NEAR, set(known), key=lambda name: (_likeness(wanted, name), name))


def _likeness(wanted: str, known: str) -> float:
    """Length of the common beginning, and as a tie-break whether one contains the other."""
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(wanted, known, strict=False)))
    return common + (0.5 if wanted in known or known in wanted else 0.0)
