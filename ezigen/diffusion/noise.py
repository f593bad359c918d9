"""Noise as a function of what it is for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Purpose = Literal["initial", "renoise", "step", "subject"]


@dataclass(frozen=True)
class NoiseSource:
    """Unit noise keyed by (item seed, purpose, loop, step): the same in any batch, worker, order and on any device."""

    def noise(self, seed: int, purpose: Purpose, loop: int, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers of this shape, fp32 on the CPU; equal arguments give equal bits."""
        key = f"{seed}|{purpose}|{loop}|{step}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        return torch.randn(tuple(shape), generator=generator)

    def batch(self, seeds: Sequence[int], purpose: Purpose, loop: int, step: int, shape: Sequence[int]) -> Tensor:
        """One noise per seed, stacked to (B, *shape)."""
        return torch.stack([self.noise(seed, purpose, loop, step, shape) for seed in seeds])
