"""Means of scores and differences between methods, with bootstrap intervals that respect who belongs together.

Images of one subject are alike, so they are no independent draws: subjects, not images, are drawn again (the cluster
bootstrap). Intervals over n images of few subjects are then as wide as they should be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
CONFIDENCE = 0.95

Direction = Literal["higher", "lower", "undecided"]
Values = npt.NDArray[np.float64]
Clusters = Sequence[str] | npt.NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval, of `count` values in `clusters` clusters.

    With a single cluster nothing can be said about others: low and high are then the least and greatest float.
    """

    mean: float
    low: float
    high: float
    count: int
    clusters: int

    def __str__(self) -> str:
        """0.718 [0.690, 0.741]."""
        ends = f" [{self.low:.3f}, {self.high:.3f}]" if self.clusters > 1 else " (one subject)"
        return f"{self.mean:.3f}{ends}"

    def signed(self) -> str:
        """Of a difference, with its sign: +0.310 [+0.250, +0.371]."""
        ends = f" [{self.low:+.3f}, {self.high:+.3f}]" if self.clusters > 1 else " (one subject)"
        return f"{self.mean:+.3f}{ends}"

    @property
    def direction(self) -> Direction:
        """Of a difference: higher where the whole interval is above 0, lower where it is below; else undecided."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "undecided"

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside."""
        return not self.low <= value <= self.high


def mean_interval(values: Sequence[float] | Values, clusters: Clusters, *, seed: int = 0) -> Interval:
    """The mean of values and its interval; clusters: to which subject each belongs.

    The percentile interval of RESAMPLES draws of whole clusters with replacement, weighted by their sizes. Raises
    ValueError for no values, or numbers of values and clusters that differ, or a value that is not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers) or len(numbers) != len(clusters):
        raise ValueError(f"{len(numbers)} values in {len(clusters)} clusters; one cluster for each value is needed")
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not finite; leave it out and say how many were")
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) == 1:
        return Interval(float(numbers.mean()), -np.inf, np.inf, len(numbers), 1)
    sums, sizes = np.bincount(members, numbers), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(numbers.mean()), float(low), float(high), len(numbers), len(names))


def paired_difference(
    first: Sequence[float] | Values,
    second: Sequence[float] | Values,
    clusters: Sequence[Any] | npt.NDArray[Any],
    *,
    seed: int = 0,
) -> Interval:
    """Of `first - second`, value by value of the same case: what two methods share (subject, prompt, seed) cancels."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be paired")
    return mean_interval(
        np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), clusters, seed=seed
    )
