"""One step ahead: what comes next is made while what is there is used."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_END: Any = object()


def read_ahead(items: Iterator[T]) -> Generator[T]:
    """The items; a thread makes the next one while the caller has this one.

    What it raises is raised here, after the items before it. Closing this generator ends the thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, items, _END)
            yield item
