"""Drawing the world in several processes, so that a fast trainer does not wait for it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

_work: Callable[[Any], Any] | None = None


def spread(work: Callable[[Any], ResultT], tasks: Iterable[Any], num_processes: int) -> Iterator[ResultT]:
    """`work(task)` for every task, in their order; in forked processes where there are several, so that work may hold
    large things without copying them. It must call nothing of torch, whose threads and GPU are the parent's.
    """
    global _work  # noqa: PLW0603  (what a forked process inherits; a lambda or a composer need not be sent to it)
    if num_processes < 2:
        yield from map(work, tasks)
        return
    _work = work
    with multiprocessing.get_context("fork").Pool(num_processes) as pool:
        yield from pool.imap(_call, tasks)


def _call(task: Any) -> Any:
    assert _work is not None
    return _work(task)
