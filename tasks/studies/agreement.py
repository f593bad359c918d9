"""How far raters agree."""

from collections.abc import Sequence

import numpy as np


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
