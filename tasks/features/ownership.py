"""Which shard stores a subject, a target picture or a text that several shards need: the first one, by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tasks.storage.keys import Words, sort_order

Kind = Literal["subjects", "targets", "texts"]
KINDS: tuple[Kind, ...] = ("subjects", "targets", "texts")

_ROWS_PER_STEP = 1_000_000


@dataclass(frozen=True)
class ShardOwnership:
    """One shard: for each of its pairs, in stored order, whether this shard is the one that stores its subject,
    its target, its text, and whether it is this pair that brings it. One bit each.
    """

    num_pairs: int
    bits: Mapping[Kind, bytes]
    counts: Mapping[Kind, int]
    """How many of each the shard stores."""

    @classmethod
    def of(cls, rows: Mapping[Kind, npt.NDArray[np.bool_]]) -> "ShardOwnership":
        """From one flag per pair and kind."""
        bits = {kind: np.packbits(flags).tobytes() for kind, flags in rows.items()}
        return cls(len(rows["subjects"]), bits, {kind: int(flags.sum()) for kind, flags in rows.items()})

    def rows(self, kind: Kind) -> npt.NDArray[np.bool_]:
        """One flag per pair."""
        return np.unpackbits(np.frombuffer(self.bits[kind], np.uint8), count=self.num_pairs).astype(np.bool_)


class OwnershipBuilder:
    """Gathers the ids of all pairs, shard after shard, and decides. Takes about 75 bytes per pair at its peak."""

    def __init__(self, num_pairs: int) -> None:
        self._words: dict[Kind, Words] = {kind: np.empty((num_pairs, 2), np.uint64) for kind in KINDS}
        self._sizes: dict[str, int] = {}
        self._num_pairs = 0

    def add(self, shard: str, ids: Mapping[Kind, Sequence[str]]) -> None:
        """The next shard's ids, 32 hex digits each: one per pair and kind. Shards come in the order of their names."""
        size = len(ids["subjects"])
        for kind in KINDS:
            digests = np.frombuffer(bytes.fromhex("".join(ids[kind])), ">u8").reshape(-1, 2)
            self._words[kind][self._num_pairs : self._num_pairs + size] = digests
        self._sizes[shard] = size
        self._num_pairs += size

    def build(self) -> dict[str, ShardOwnership]:
        """By shard; every id is owned exactly once. Forgets what was gathered."""
        first = {kind: _first_of_each(self._words.pop(kind)) for kind in KINDS}
        owned, start = {}, 0
        for shard, size in self._sizes.items():
            owned[shard] = ShardOwnership.of({kind: flags[start : start + size] for kind, flags in first.items()})
            start += size
        return owned


def total(owned: Iterable[ShardOwnership], kind: Kind) -> int:
    """How many of a kind some shards store."""
    return sum(one.counts[kind] for one in owned)


def _first_of_each(words: Words) -> npt.NDArray[np.bool_]:
    """Marks the first occurrence of every key. Steps keep copies of the keys small."""
    order = sort_order(words)
    first = np.zeros(len(words), np.bool_)
    for start in range(0, len(words), _ROWS_PER_STEP):
        here = order[start : start + _ROWS_PER_STEP]
        before = order[np.maximum(np.arange(start, start + len(here)) - 1, 0)]
        first[here] = (words[here] != words[before]).any(axis=1)
    if len(words):
        first[order[0]] = True
    return first
