"""What a subject looks like to the UNet: tokens per transformer block."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class SubjectFeatures:
    """Normalised inputs of the self-attention layers, s_1 .. s_N of paper 3.1.

    tokens: block name -> (B, N, C); N and C differ between blocks.
    mask: block name -> (B, N) bool, True where a token exists; None when all do. A sample whose mask is all False
    has no subject: its adapters attend to its own tokens alone.
    """

    tokens: dict[str, Tensor]
    mask: dict[str, Tensor] | None = None

    @property
    def batch_size(self) -> int:
        """Number of samples B."""
        return len(next(iter(self.tokens.values())))

    @property
    def num_values(self) -> int:
        """Stored numbers per sample: 11.55 M for SD2.1-base at 512 px."""
        return sum(tokens[0].numel() for tokens in self.tokens.values())

    def select(self, index: int | slice | Tensor) -> "SubjectFeatures":
        """These samples only; an int keeps the batch dimension."""
        kept = slice(index, index + 1 or None) if isinstance(index, int) else index
        mask = None if self.mask is None else {name: m[kept] for name, m in self.mask.items()}
        return SubjectFeatures({name: t[kept] for name, t in self.tokens.items()}, mask)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "SubjectFeatures":
        """The same features on a device and, for the tokens, in a precision."""
        mask = None if self.mask is None else {name: m.to(device) for name, m in self.mask.items()}
        return SubjectFeatures({name: t.to(device, dtype) for name, t in self.tokens.items()}, mask)

    def full_mask(self) -> dict[str, Tensor]:
        """The mask, written out also where every token exists."""
        if self.mask is not None:
            return self.mask
        return {name: torch.ones(t.shape[:2], dtype=torch.bool, device=t.device) for name, t in self.tokens.items()}

    def keep(self, slots: Tensor) -> "SubjectFeatures":
        """Mask out whole pictures: slots (B,) or (B, S) bool, True keeps; each of the S slots owns N / S tokens.

        This is subject dropout in training (no subject tokens, not zero tokens) and how padded slots disappear.
        """
        slots = slots.bool().reshape(self.batch_size, -1)
        mask = {
            name: m & slots.to(m.device).repeat_interleave(m.shape[1] // slots.shape[1], dim=1)
            for name, m in self.full_mask().items()
        }
        return SubjectFeatures(self.tokens, mask)

    @classmethod
    def concatenate(cls, parts: Sequence["SubjectFeatures"]) -> "SubjectFeatures":
        """Several pictures of each sample's subject: tokens joined along the token axis (paper 3.1)."""
        tokens = {name: torch.cat([p.tokens[name] for p in parts], dim=1) for name in parts[0].tokens}
        if all(p.mask is None for p in parts):
            return cls(tokens)
        masks = [p.full_mask() for p in parts]
        return cls(tokens, {name: torch.cat([m[name] for m in masks], dim=1) for name in tokens})

    @classmethod
    def mix(cls, parts: Sequence["SubjectFeatures"], shares: Sequence[float]) -> "SubjectFeatures":
        """One subject between several: the weighted sum of their tokens, position by position.

        Pictures of share 0 leave no trace, and a share of 1 gives that picture's features bit for bit. A token exists
        where one of the pictures has it; where some lack it, the shares of the others count.
        """
        chosen = [(part, share) for part, share in zip(parts, shares, strict=True) if share]
        if len(chosen) == 1:
            return chosen[0][0]
        if all(part.mask is None for part, _ in chosen):
            names = chosen[0][0].tokens
            return cls({name: torch.stack([part.tokens[name] * s for part, s in chosen]).sum(0) for name in names})
        masks = [part.full_mask() for part, _ in chosen]
        tokens, mask = {}, {}
        for name, like in chosen[0][0].tokens.items():
            weights = [m[name].to(like.dtype)[..., None] * s for (_, s), m in zip(chosen, masks, strict=True)]
            total = torch.stack(weights).sum(0)
            parted = [part.tokens[name] * weight for (part, _), weight in zip(chosen, weights, strict=True)]
            mask[name] = total[..., 0] > 0
            tokens[name] = torch.stack(parted).sum(0) / torch.where(total > 0, total, 1)
        return cls(tokens, mask)

    @classmethod
    def stack(cls, samples: Sequence["SubjectFeatures"]) -> "SubjectFeatures":
        """Samples joined along the batch; those with fewer tokens are padded with masked zeros."""
        tokens = {name: stack_tokens([s.tokens[name] for s in samples]) for name in samples[0].tokens}
        complete = all(s.mask is None for s in samples) and len({s.num_values for s in samples}) == 1
        return cls(tokens, None if complete else stack_masks([s.full_mask() for s in samples]))


def stack_tokens(samples: Sequence[Tensor]) -> Tensor:
    """Join (B, ..., N, C) along the batch, padding the token axis with zeros to the longest N."""
    longest = max(sample.shape[-2] for sample in samples)
    return torch.cat([functional.pad(sample, (0, 0, 0, longest - sample.shape[-2])) for sample in samples])


def stack_masks(masks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The masks of samples that `stack_tokens` joins: padding does not exist."""
    joined = {}
    for name in masks[0]:
        longest = max(mask[name].shape[1] for mask in masks)
        joined[name] = torch.cat([functional.pad(m[name], (0, longest - m[name].shape[1])) for m in masks])
    return joined
