"""The subject adapter of one transformer block (paper 3.1, Eq. 3-4)."""

from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of subject tokens, each (B, heads, N, head_dim)."""


class SubjectAdapter(nn.Module):
    """Attention from the image's own tokens to themselves and the subject's.

    u = LN_a(h1);  c = [u ; w s];  a = W_o softmax(W_q u (W_k c)^T / sqrt(d)) W_v c + b_o;  result = h1 + a

    With extra_residual the result is h1 + a + u, as in the authors' released checkpoint.
    """

    def __init__(self, dim: int, num_heads: int, norm_eps: float = 1e-5, *, extra_residual: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.extra_residual = extra_residual
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.subject_weight = nn.Parameter(torch.ones(()))

    @classmethod
    def from_block(cls, block: Any, *, extra_residual: bool = False) -> Self:
        """An adapter that starts as a copy of the block's self-attention and its norm, with w = 1."""
        attention, norm = block.attn1, block.norm1
        weight = attention.to_q.weight
        with torch.device(weight.device):
            adapter = cls(weight.shape[0], attention.heads, norm.eps, extra_residual=extra_residual).to(weight.dtype)
        pairs = (
            (adapter.norm, norm),
            (adapter.to_q, attention.to_q),
            (adapter.to_k, attention.to_k),
            (adapter.to_v, attention.to_v),
            (adapter.to_out, attention.to_out[0]),
        )
        for own, source in pairs:
            own.load_state_dict(source.state_dict())
        return adapter

    def key_value(self, tokens: Tensor) -> KeyValue:
        """Keys and values of subject tokens (B, N, C). They depend on the subject alone: compute them once."""
        kind, dtype = tokens.device.type, self.subject_weight.dtype
        if torch.is_autocast_enabled(kind):  # what is kept for the backward pass is then half as large
            dtype = torch.get_autocast_dtype(kind)
        weighted = self.subject_weight * tokens.to(dtype)
        return self._heads(self.to_k(weighted)), self._heads(self.to_v(weighted))

    def forward(
        self, hidden: Tensor, subject: KeyValue, mask: Tensor | None = None, gate: Tensor | None = None
    ) -> Tensor:
        """h2 of Eq. 4 for hidden h1 (R * B, T, C), where R guidance branches share the B subjects, branch by branch.

        mask (B, N) bool: subject tokens that exist; a sample without any attends to its own tokens alone.
        gate (B,): 1 uses the adapter, 0 leaves the sample exactly as the stock block does.
        """
        own: Tensor = self.norm(hidden)
        key = _join(self._heads(self.to_k(own)), subject[0])
        value = _join(self._heads(self.to_v(own)), subject[1])
        allowed = None if mask is None else _attendable(mask, own)
        attended = F.scaled_dot_product_attention(self._heads(self.to_q(own)), key, value, attn_mask=allowed)
        change: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        if self.extra_residual:
            change = change + own
        if gate is not None:
            change = change * _per_branch(gate.to(change.dtype), len(change))[:, None, None]
        return hidden + change

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, head_dim)."""
        return x.view(*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads).transpose(1, 2)


def _join(own: Tensor, subject: Tensor) -> Tensor:
    """Concatenate along tokens; the subject of sample b serves rows b, B + b, 2B + b ... without being copied first."""
    num_branches = _num_branches(len(own), len(subject))
    if num_branches == 1:
        return torch.cat([own, subject], dim=2)
    branches = own.view(num_branches, len(subject), *own.shape[1:])
    return torch.cat([branches, subject.expand(num_branches, *subject.shape)], dim=3).flatten(0, 1)


def _attendable(mask: Tensor, own: Tensor) -> Tensor:
    """(B, N) -> (R * B, 1, 1, T + N): own tokens always, the subject's where they exist."""
    everywhere = F.pad(mask, (own.shape[1], 0), value=True)
    return _per_branch(everywhere, len(own))[:, None, None]


def _per_branch(x: Tensor, num_rows: int) -> Tensor:
    num_branches = _num_branches(num_rows, len(x))
    return x if num_branches == 1 else x.repeat(num_branches, *(1,) * (x.ndim - 1))


def _num_branches(num_rows: int, num_subjects: int) -> int:
    num_branches, rest = divmod(num_rows, num_subjects)
    if rest:
        raise ValueError(
            f"a UNet call with {num_rows} samples cannot use {num_subjects} subjects in every guidance branch"
        )
    return num_branches
