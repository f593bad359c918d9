"""Which tokens of a picture its subject touches."""

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

from ezigen.subject.features import SubjectFeatures


def mask_background(features: SubjectFeatures, mask: Tensor) -> SubjectFeatures:
    """The features (square token grids, none masked) with every token masked out that the subject's mask (H, W) bool
    does not touch.

    An empty mask keeps every token: such a subject has no background that is known.
    """
    cells = touched_cells(mask, isqrt(max(tokens.shape[1] for tokens in features.tokens.values())))
    kept = {}
    for name, tokens in features.tokens.items():
        touched = pool_cells(cells, isqrt(tokens.shape[1])).flatten()
        kept[name] = touched.to(tokens.device).expand(len(tokens), -1)
    return SubjectFeatures(features.tokens, kept)


def drop_masked(features: SubjectFeatures, units: Mapping[str, int]) -> SubjectFeatures:
    """The features (batch 1) without their masked tokens, padded by block to a multiple of its unit, at least one unit.

    Adapters attend to the same tokens as before, at less cost; the padding is masked. Few units make few lengths.
    """
    tokens, masks = {}, {}
    for name, mask in features.full_mask().items():
        kept = features.tokens[name][:, mask[0]]
        padding = -kept.shape[1] % units[name] or (0 if kept.shape[1] else units[name])
        tokens[name] = functional.pad(kept, (0, 0, 0, padding))
        masks[name] = functional.pad(mask[:, mask[0]], (0, padding))
    return SubjectFeatures(tokens, masks)


def touched_cells(mask: Tensor | None, side: int) -> Tensor:
    """Cells (side, side) bool of which at least one pixel of the mask (H, W), non-zero = subject, is set.

    Without a mask, or with an empty one, all cells: such a subject has no background that is known.
    """
    if mask is None or not mask.any():
        return torch.ones(side, side, dtype=torch.bool)
    if mask.ndim != 2:
        raise ValueError(f"a mask is (H, W), this one is {tuple(mask.shape)}")
    return pool_cells((mask != 0).cpu(), side)


def pool_cells(cells: Tensor, side: int) -> Tensor:
    """Cells of a coarser grid that overlap any set cell of a finer one; also where the grids do not nest."""
    if cells.shape == (side, side):
        return cells.bool()
    if min(cells.shape) < side:
        cells = cells.repeat_interleave(-(-side // cells.shape[0]), 0).repeat_interleave(-(-side // cells.shape[1]), 1)
    return functional.adaptive_max_pool2d(cells[None, None].float(), side)[0, 0] > 0
