"""What this process moves to and from its stores, counted for the metrics of a run."""

import threading
from collections import Counter
from collections.abc import Mapping


class Traffic:
    """Sums since the process began: storage_bytes.read and storage_bytes.written, of objects that were read as a whole
    and of all that were written, and storage_retries, accesses that failed and were tried again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def read(self, data: bytes) -> bytes:
        """Counts and returns what was read."""
        self._add("storage_bytes.read", len(data))
        return data

    def wrote(self, num_bytes: int) -> None:
        """Counts what has been stored."""
        self._add("storage_bytes.written", num_bytes)

    def retried(self) -> None:
        """Counts an access that is tried again."""
        self._add("storage_retries", 1)

    def counts(self) -> Mapping[str, float]:
        """The sums as they are now."""
        with self._lock:
            return dict(self._counts)

    def _add(self, name: str, amount: int) -> None:
        with self._lock:
            self._counts[name] += amount


TRAFFIC = Traffic()
"""Of this process."""
