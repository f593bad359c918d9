"""Everything random in a train step, as a function of (seed, position in the run, purpose).

No generator is carried from step to step: a resumed run, another number of processes or other micro-batches draw the
same numbers for the same sample.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ezigen.config import TrainingConfig
from ezigen.training.batch import TrainBatch

_WORDS = 1 << 64


@dataclass(frozen=True, eq=False)
class Draws:
    """What is random about B samples, on the CPU."""

    timesteps: Tensor
    """(B,) int64, uniform in each sample's range."""
    noise: Tensor
    """(B, c, h, w) fp32, standard normal: what the target latent is noised with."""
    posterior_noise: Tensor | None
    """(B, c, h, w) fp32, standard normal: which latent of the VAE's posterior is taken; None: its mean."""
    keeps_subject: Tensor
    """(B,) bool: False drops the subject's tokens."""
    keeps_text: Tensor
    """(B,) bool: False gives the sample an empty caption."""


def draw(config: TrainingConfig, batch: TrainBatch) -> Draws:
    """Uniform timesteps, unit noise, a draw of the posterior, and dropouts at the configured rates (paper 4.1).

    Raises ValueError for a rate that is still `auto`; see TrainingConfig.for_model.
    """
    seed, positions = config.seed, batch.positions.tolist()
    shape = batch.mean.shape[1:]
    return Draws(
        timesteps=_timesteps(seed, positions, batch.timesteps.tolist()),
        noise=_noise(seed, positions, "noise", shape),
        posterior_noise=_noise(seed, positions, "posterior", shape) if config.sample_posterior else None,
        keeps_subject=_keeps(seed, positions, "subject", config.subject_dropout),
        keeps_text=_keeps(seed, positions, "text", float(config.text_dropout)),
    )


def without_dropout(draws: Draws) -> Draws:
    """The same draws with every subject and every caption: what is measured rather than trained on."""
    everything = torch.ones_like(draws.keeps_subject)
    return replace(draws, keeps_subject=everything, keeps_text=everything)


def _timesteps(seed: int, positions: Sequence[int], ranges: Sequence[tuple[int, int]]) -> Tensor:
    # A word is so much longer than a range that no timestep is preferred by more than 2^-54.
    return torch.tensor(
        [
            least + _word(seed, position, "timestep") % (greatest - least + 1)
            for position, (least, greatest) in zip(positions, ranges, strict=True)
        ]
    )


def _noise(seed: int, positions: Sequence[int], purpose: str, shape: Sequence[int]) -> Tensor:
    noise = torch.empty(len(positions), *shape)
    for row, position in zip(noise, positions, strict=True):
        torch.randn(tuple(shape), generator=_generator(seed, position, purpose), out=row)
    return noise


def _generator(seed: int, position: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(_word(seed, position, purpose) >> 1)


def _keeps(seed: int, positions: Sequence[int], purpose: str, dropout: float) -> Tensor:
    return torch.tensor([_word(seed, position, purpose) >= dropout * _WORDS for position in positions])


def _word(seed: int, position: int, purpose: str) -> int:
    """64 uniform bits."""
    key = f"training|{seed}|{position}|{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
