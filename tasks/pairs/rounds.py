"""How many candidates a further round takes, and how many pairs each of its shards may build. Pure arithmetic.

A round that takes as many candidates as pairs are missing never builds too many, and leaves what was refused to the
next one. Where most candidates are refused that would be thousands of rounds; so later ones take more, by what has been
observed, and shards stop building when they have their part of what is missing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MAX_SHARDS_AT_ONCE = 64
"""A round of one shard takes at most as many candidates as this many usual shards: one worker has to try them all."""


@dataclass(frozen=True)
class SourceState:
    """One source after some rounds: `built` pairs of `wanted`, from `taken` candidates of `candidates`."""

    wanted: int
    candidates: int
    taken: int = 0
    built: int = 0

    @property
    def missing(self) -> int:
        """Pairs that are wanted and that the candidates left could still give."""
        return min(max(0, self.wanted - self.built), self.candidates - self.taken)


def count_next(sources: Mapping[str, SourceState], pairs_per_shard: int) -> dict[str, int]:
    """How many more candidates of each source the next round takes; zeros where nothing is missing or none is left."""
    is_small = sum(one.missing for one in sources.values()) <= pairs_per_shard
    limit = _MAX_SHARDS_AT_ONCE * pairs_per_shard
    return {
        name: min(one.candidates - one.taken, max(one.missing, _scaled(one, limit if is_small else None)))
        for name, one in sources.items()
    }


def _scaled(one: SourceState, limit: int | None) -> int:
    """Candidates that should give what is missing: twice as many as needed in one last shard, which stops in time."""
    if not one.missing or not one.taken:
        return one.missing
    if limit is not None:
        return min(limit, 2 * one.missing * (one.taken + 1) // (one.built + 1))
    # Many shards cannot tell each other when to stop. Even a share of good candidates that is twice the highest that
    # what was seen allows (five deviations) gives no more than is missing; the limits are there for what is odder.
    highest = (one.built + 5 * math.sqrt(one.built) + 14) / one.taken
    return int(one.missing / (2 * highest))


def count_per_shard(taking: Mapping[str, int], sources: Mapping[str, SourceState], pairs_per_shard: int) -> int:
    """How many candidates a shard has, so that it gives about `pairs_per_shard` pairs at most."""
    missing = sum(min(one.missing, taking[name]) for name, one in sources.items())
    return max(pairs_per_shard, -(-pairs_per_shard * sum(taking.values()) // max(1, missing)))


def divide_missing(missing: int, num_candidates: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many pairs each shard may build, by its candidates: together `missing`, or everything if that is less."""
    total = int(num_candidates.sum())
    if missing >= total:
        return num_candidates
    return np.diff(np.cumsum(num_candidates) * missing // total, prepend=0)
