"""Memory that is used again: the first touch of fresh pages costs up to four times as much as reading into them."""

import threading
import weakref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT = 64
# Smaller blocks come from the allocator's own reserves.
_MIN_BYTES = 2**20
_MAX_FREE_BYTES = 256 * 2**20

_Bytes = npt.NDArray[np.uint8]


class BlockPool:
    """Hands out blocks of bytes, and hands them out again once no tensor refers to them.

    Keeps at most 256 MiB that nobody uses. May be used by several threads.
    """

    def __init__(self) -> None:
        self._free: list[_Bytes] = []
        # A tensor may be collected, and its memory come back, while this very thread is taking a block.
        self._lock = threading.RLock()

    def take(self, size: int) -> Tensor:
        """A block (size,) uint8 of no particular values, aligned to 64 bytes."""
        if size < _MIN_BYTES:
            return torch.from_numpy(_aligned(size))
        memory = self._find_free(size)
        if memory is None:
            # Rounded up, so that subjects with a few tokens more or less fit too.
            memory = _aligned(-(-size // _MIN_BYTES) * _MIN_BYTES)
        # The tensor and all its views hold on to this view; when the last of them goes, the memory is free.
        view = memory[:size]
        weakref.finalize(view, self._give_back, memory).atexit = False
        return torch.from_numpy(view)

    def _find_free(self, size: int) -> _Bytes | None:
        with self._lock:
            # The one that came back last is the likeliest to be in a cache.
            for index in reversed(range(len(self._free))):
                if size <= len(self._free[index]) <= 2 * size:
                    return self._free.pop(index)
        return None

    def _give_back(self, memory: _Bytes) -> None:
        with self._lock:
            if sum(map(len, self._free)) + len(memory) <= _MAX_FREE_BYTES:
                self._free.append(memory)


def _aligned(size: int) -> _Bytes:
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    return memory[start : start + size]
