"""Balanced sampling: every group gives its first pair before any gives its second. Pure arithmetic."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def group_hash(seed: int, group_id: str) -> int:
    """The place of a group in the order of sampling: 64 bits that depend on nothing but the seed and its id."""
    digest = hashlib.blake2b(
        group_id.encode(errors="surrogatepass"), digest_size=8, key=seed.to_bytes(8, "big"), person=b"ezigen-pairs"
    ).digest()
    return int.from_bytes(digest, "big")


def take_balanced(num_candidates: Counts, wanted: int) -> Counts:
    """How many candidates each group gives; groups stand in the order of their hashes.

    The candidates (group, rank) are ordered by (rank, place of the group), and the first `wanted` of them are taken:
    all of them if there are fewer.
    """
    if wanted >= int(num_candidates.sum()):
        return num_candidates.astype(np.int64)
    full = _full_ranks(num_candidates, wanted)
    taken = np.minimum(num_candidates, full).astype(np.int64)
    left = wanted - int(taken.sum())
    taken[np.flatnonzero(num_candidates > full)[:left]] += 1
    return taken


@dataclass(frozen=True)
class Pieces:
    """Ranks [start, stop) of groups, each with its shard, in the order of the groups; all arrays are equally long."""

    group: Counts
    start: Counts
    stop: Counts
    shard: Counts

    @property
    def num_shards(self) -> int:
        """Shards are numbered from 0 without gaps."""
        return int(self.shard[-1]) + 1 if len(self.shard) else 0


def divide(start: Counts, stop: Counts, pairs_per_shard: int) -> Pieces:
    """The ranks [start, stop) of every group, divided into shards of about `pairs_per_shard`.

    A group belongs to the shard in which its first rank falls; only a group larger than a shard is divided.
    """
    length = stop - start
    num_pieces = -(-length // pairs_per_shard)
    group = np.repeat(np.arange(len(length)), num_pieces)
    number = np.arange(len(group)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    first = start[group] + number * pairs_per_shard
    last = np.minimum(first + pairs_per_shard, stop[group])
    before = np.cumsum(last - first) - (last - first)
    shard = np.unique(before // pairs_per_shard, return_inverse=True)[1]
    return Pieces(group, first, last, shard.astype(np.int64))


def _full_ranks(num_candidates: Counts, wanted: int) -> int:
    """How many ranks every group can give without passing `wanted`."""
    low, high = 0, int(num_candidates.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(num_candidates, middle).sum()) <= wanted:
            low = middle
        else:
            high = middle - 1
    return low
