"""Millions of 128-bit keys in 16 bytes each: conversion, duplicates, look-up."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Words = npt.NDArray[np.uint64]
"""Keys as an array (num_keys, 2): the upper and the lower 64 bits."""

_NOT_HEX = 255
_NIBBLES = np.full(256, _NOT_HEX, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)


def words_from_digests(digests: Iterable[bytes]) -> Words:
    """Keys of 16-byte digests."""
    return np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)


def words_from_hex(column: pa.StringArray) -> Words:
    """Keys of a column of 32 hex digits. Raises ValueError if a value is anything else."""
    if column.null_count:
        raise ValueError("an item_key is null")
    data = column.buffers()[2]
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    if (np.diff(offsets) != 32).any():
        raise ValueError("an item_key does not have 32 characters")
    start, stop = (int(offsets[0]), int(offsets[-1])) if len(column) else (0, 0)
    characters = np.frombuffer(data, np.uint8)[start:stop] if stop > start else np.empty(0, np.uint8)
    nibbles = _NIBBLES[characters].reshape(-1, 2)
    if (nibbles == _NOT_HEX).any():
        raise ValueError("an item_key is not hexadecimal")
    octets = (nibbles[:, 0] << 4) | nibbles[:, 1]
    return octets.view(">u8").reshape(-1, 2).astype(np.uint64)


def words_to_hex(words: Words) -> list[str]:
    """The keys as 32 hex digits each."""
    text = words.astype(">u8").tobytes().hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]


def sort_order(words: Words) -> npt.NDArray[np.int64]:
    """The order that sorts the keys; equal keys keep their order."""
    upper = words[:, 0]
    order = np.argsort(upper, kind="stable")
    sorted_upper = upper[order]
    if (sorted_upper[1:] == sorted_upper[:-1]).any():
        return np.lexsort((words[:, 1], upper))
    return order


def group_starts(sorted_words: Words) -> npt.NDArray[np.bool_]:
    """Marks the first of each run of equal keys."""
    starts = np.ones(len(sorted_words), np.bool_)
    starts[1:] = (sorted_words[1:] != sorted_words[:-1]).any(axis=1)
    return starts


def positions_in_group(starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """0 for the first of each group, 1 for its second, and so on."""
    positions = np.arange(len(starts))
    return positions - np.maximum.accumulate(np.where(starts, positions, 0))


class KeyTable:
    """Distinct keys in sorted order, to be looked up by the million."""

    def __init__(self, sorted_words: Words) -> None:
        self.words = sorted_words
        self._upper = np.ascontiguousarray(sorted_words[:, 0])

    def __len__(self) -> int:
        return len(self.words)

    def find(self, words: Words) -> npt.NDArray[np.int64]:
        """The position of each key in the table, or -1."""
        found = np.full(len(words), -1, np.int64)
        if not len(self):
            return found
        # Sorted queries walk the table once instead of missing the cache ten million times.
        asked = np.argsort(words[:, 0])
        candidates = np.searchsorted(self._upper, words[asked, 0])
        open_, last = np.arange(len(words)), len(self) - 1
        while len(open_):
            at = candidates[open_]
            same_upper = (at <= last) & (self._upper[np.minimum(at, last)] == words[asked[open_], 0])
            open_, at = open_[same_upper], at[same_upper]
            hit = self.words[at, 1] == words[asked[open_], 1]
            found[asked[open_[hit]]] = at[hit]
            open_ = open_[~hit]
            candidates[open_] += 1
        return found


class DistinctCounter:
    """Counts distinct texts exactly up to collisions of 64-bit hashes, in 8 bytes per distinct text."""

    def __init__(self) -> None:
        self._known: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._pending: list[npt.NDArray[np.int64]] = []
        self._num_pending = 0

    def add(self, texts: Iterable[str | None]) -> None:
        """Counts these texts in."""
        hashes = np.unique(np.fromiter(map(hash, texts), np.int64))
        self._pending.append(hashes)
        self._num_pending += len(hashes)
        if self._num_pending > max(1_000_000, len(self._known) // 2):
            self._merge()

    def count(self) -> int:
        """How many different texts have been seen."""
        self._merge()
        return len(self._known)

    def _merge(self) -> None:
        self._known = np.unique(np.concatenate([self._known, *self._pending]))
        self._pending, self._num_pending = [], 0
