"""Results that several items share, kept within bounds."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class Cache(Generic[KeyT, ValueT]):
    """The values that were used last, up to a total size; counts how often a value was there."""

    def __init__(self, max_size: float) -> None:
        """max_size bounds the sum of the sizes that `put` is given, in whatever unit they are."""
        self.max_size = max_size
        self.hits = 0
        self.misses = 0
        self._values: OrderedDict[KeyT, tuple[ValueT, float]] = OrderedDict()
        self._size = 0.0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: KeyT) -> ValueT | None:
        """The value, or None; counts a hit or a miss."""
        found = self._values.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: KeyT, value: ValueT, size: float = 1.0) -> None:
        """Keeps the value, at the expense of those that were used longest ago. A value above max_size is not kept."""
        self._drop(key)
        if size > self.max_size:
            return
        while self._size + size > self.max_size:
            self._drop(next(iter(self._values)))
        self._values[key] = (value, size)
        self._size += size

    def clear(self) -> None:
        """Keeps nothing; the counts stay."""
        self._values.clear()
        self._size = 0.0

    def _drop(self, key: KeyT) -> None:
        if key in self._values:
            self._size -= self._values.pop(key)[1]
