"""Shares with bootstrap intervals over cases, and how far raters agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % interval, of `count` values in `clusters` clusters.

    With a single cluster nothing can be said about others: low and high are then infinite.
    """

    mean: float
    low: float
    high: float
    count: int
    clusters: int


def mean_interval(values: Sequence[float], clusters: Sequence[str], *, seed: int = 0) -> Interval:
    """The mean of values and its percentile interval of RESAMPLES draws of whole clusters with replacement.

    clusters: to which one each value belongs. Raises ValueError for no values, or numbers of both that differ.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers) or len(numbers) != len(clusters):
        raise ValueError(f"{len(numbers)} values in {len(clusters)} clusters; one cluster for each value is needed")
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) == 1:
        return Interval(float(numbers.mean()), -np.inf, np.inf, len(numbers), 1)
    sums, sizes = np.bincount(members, numbers), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(numbers.mean()), float(low), float(high), len(numbers), len(names))


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Agreement beyond chance (Fleiss 1971): 1 is full agreement, 0 what chance gives.

    counts: (cases, categories), how many raters put each case into each category. Cases of fewer than two raters say
    nothing and are left out; where numbers of raters differ, each case counts with its own. None if no case is left, or
    if all raters always chose the same category, where chance explains everything.
    """
    table = np.asarray([row for row in counts if sum(row) >= 2], dtype=np.float64)
    if not len(table):
        return None
    raters = table.sum(1)
    agreement = ((table**2).sum(1) - raters) / (raters * (raters - 1))
    by_chance = float(((table.sum(0) / table.sum()) ** 2).sum())
    return None if by_chance >= 1 else float((agreement.mean() - by_chance) / (1 - by_chance))
