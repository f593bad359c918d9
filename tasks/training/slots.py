"""Subjects in the slots of their samples: S slots each, of which a sample's subjects take the first ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ezigen.subject import SubjectFeatures


def slots_of(num_subjects: Sequence[int]) -> Tensor:
    """(B, S) bool, True where a subject exists; S is the largest number."""
    counts = torch.tensor(num_subjects)
    return torch.arange(int(counts.max())) < counts[:, None]


def tokens_in_slots(found: SubjectFeatures, slots: Tensor) -> SubjectFeatures:
    """Tokens (K, N, C) of the K subjects that exist, as (B, S * N, C); those of missing subjects are masked.

    Nothing is copied where all exist.
    """
    if slots.all():
        mask = None if found.mask is None else {name: m.reshape(len(slots), -1) for name, m in found.mask.items()}
        return SubjectFeatures({name: t.reshape(len(slots), -1, t.shape[2]) for name, t in found.tokens.items()}, mask)
    tokens = {name: in_slots(given, slots).flatten(1, 2) for name, given in found.tokens.items()}
    return SubjectFeatures(tokens, {name: in_slots(m, slots).flatten(1) for name, m in found.full_mask().items()})


def in_slots(given: Tensor, slots: Tensor) -> Tensor:
    """What the K subjects that exist have (K, ...), as (B, S, ...) with zeros elsewhere."""
    spread = given.new_zeros(slots.numel(), *given.shape[1:])
    spread[slots.flatten().nonzero()[:, 0].to(given.device)] = given
    return spread.view(*slots.shape, *given.shape[1:])
