"""Muon: momentum whose matrix updates are made nearly orthogonal (Jordan et al. 2024), with AdamW for everything that
is no matrix.

With an update of spectral norm about one per matrix, scaled to AdamW's usual size (0.2 sqrt(max(rows, columns))),
both share one learning rate.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonalize(matrix: Tensor, steps: int = 4) -> Tensor:
    """The nearest (semi-)orthogonal matrix to `matrix` (... x rows x columns), roughly, by a quintic Newton-Schulz
    iteration: in bfloat16 on a GPU, in fp32 elsewhere (many CPUs multiply bfloat16 ten times more slowly).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(matrix.dtype)
    return result


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a weight is updated as a matrix: linear and convolution weights, but no embeddings and no first or
    last layer.
    """
    edges = ("embedding", "conv_in", "conv_out")
    return parameter.ndim >= 2 and not any(edge in name for edge in edges)


class Muon:
    """Orthogonalised momentum for matrices; state is a plain dict of tensors, so that checkpoints need no
    unpickling.
    """

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        self.parameters, self.momentum, self.weight_decay = parameters, momentum, weight_decay
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, lr: float | Tensor) -> None:
        """One update of every matrix with learning rate `lr`. Matrices of one shape go through the iteration together:
        a small network's time on a GPU is the number of its kernels.
        """
        by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter, buffer in zip(self.parameters, self.buffers, strict=True):
            if parameter.grad is None:
                continue
            buffer.lerp_(parameter.grad, 1 - self.momentum)
            direction = torch.lerp(parameter.grad, buffer, self.momentum).reshape(len(parameter), -1)
            by_shape[direction.shape[0], direction.shape[1]].append((parameter, direction))
        for shape, members in by_shape.items():
            updates = orthogonalize(torch.stack([direction for _, direction in members]))
            updates = updates * (-lr * 0.2 * max(shape) ** 0.5)
            for (parameter, _), update in zip(members, updates, strict=True):
                parameter.mul_(1 - lr * self.weight_decay)
                parameter.add_(update.reshape(parameter.shape))

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The momenta."""
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Take up saved momenta."""
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(saved)
