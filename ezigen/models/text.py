"""What texts tell the UNet."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TextCondition:
    """B encoded texts.

    tokens: (B, L, D), one embedding per token, for cross-attention. pooled: (B, P), one vector per text, of the models
    that take it beside the timestep (Stable Diffusion XL); None for the others.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: slice | Sequence[int]) -> "TextCondition":
        """These texts, in this order."""
        return TextCondition(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def to(
        self, device: torch.device | str, dtype: torch.dtype | None = None, *, non_blocking: bool = False
    ) -> "TextCondition":
        """The same texts on a device and in a precision."""
        moved = [
            None if tensor is None else tensor.to(device, dtype, non_blocking=non_blocking)
            for tensor in (self.tokens, self.pooled)
        ]
        assert moved[0] is not None
        return TextCondition(moved[0], moved[1])

    def where(self, keeps: Tensor, other: "TextCondition") -> "TextCondition":
        """These texts where keeps (B,) is True; elsewhere the other one, a single text."""
        tokens = torch.where(keeps[:, None, None], self.tokens, other.tokens)
        if self.pooled is None or other.pooled is None:
            return TextCondition(tokens)
        return TextCondition(tokens, torch.where(keeps[:, None], self.pooled, other.pooled))

    def empty_slots(self, num_slots: int) -> "TextCondition":
        """Slots for texts like these; zeros."""
        pooled = None if self.pooled is None else self.pooled.new_zeros((num_slots, *self.pooled.shape[1:]))
        return TextCondition(self.tokens.new_zeros((num_slots, *self.tokens.shape[1:])), pooled)

    def fill(self, slot: int, text: "TextCondition") -> None:
        """Copies the first of some texts into a slot, in place."""
        self.tokens[slot] = text.tokens[0]
        if self.pooled is not None and text.pooled is not None:
            self.pooled[slot] = text.pooled[0]

    @classmethod
    def cat(cls, parts: Sequence["TextCondition"]) -> "TextCondition":
        """All texts of the parts, one after the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)
