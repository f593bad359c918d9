"""Muon: momentum whose matrix updates are made nearly orthogonal (Jordan et al. 2024), with AdamW for everything that
is no matrix.

With an update of spectral norm about one per matrix, scaled to AdamW's usual size (0.2 sqrt(max(rows, columns))),
both share one learning rate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def orthogonalize(matrix: Tensor, steps: int = 4) -> Tensor:
    """The nearest (semi-)orthogonal matrix to `matrix` (rows x columns), roughly, by a quintic Newton-Schulz
    iteration: in bfloat16 on a GPU, in fp32 elsewhere (many CPUs multiply bfloat16 ten times more slowly).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.T if tall else x).to(matrix.dtype)
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
    def step(self, lr: float) -> None:
        """One update of every matrix with learning rate `lr`."""
        for parameter, buffer in zip(self.parameters, self.buffers, strict=True):
            if parameter.grad is None:
                continue
            buffer.lerp_(parameter.grad, 1 - self.momentum)
            direction = torch.lerp(parameter.grad, buffer, self.momentum).reshape(len(parameter), -1)
            scale = 0.2 * max(direction.shape) ** 0.5
            parameter.mul_(1 - lr * self.weight_decay)
            parameter.add_(orthogonalize(direction).reshape(parameter.shape), alpha=-lr * scale)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The momenta."""
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Take up saved momenta."""
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(saved)
