"""The frozen UNet as its own subject encoder (paper 3.1)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ezigen.diffusion import NoiseSource
from ezigen.models.blocks import transformer_blocks
from ezigen.models.stack import Stack, encode_pictures, encode_prompts
from ezigen.models.text import TextCondition
from ezigen.models.unet import call_unet
from ezigen.subject.features import SubjectFeatures

SUBJECT_PROMPT = "a photo of a {subject_class}."


class SubjectEncoder:
    """Subject pictures to features, with the weights that also make the images: there is no second network."""

    def __init__(self, stack: Stack, noise: NoiseSource | None = None) -> None:
        self._stack = stack
        self._noise = noise or NoiseSource()

    def encode(
        self,
        pictures: Tensor,
        subject_classes: Sequence[str],
        *,
        t_sub: int = 1,
        seeds: Sequence[int] | None = None,
        number: int = 0,
        template: str = SUBJECT_PROMPT,
    ) -> SubjectFeatures:
        """Features of pixels (B, 3, H, W) in [-1, 1], one subject class each.

        The latent is noised to timestep t_sub with the noise of each sample's seed (0 where none are given: features
        then depend on the subject alone); each number of a seed is another noise. Adapters, if attached, must be idle.
        """
        stack = self._stack
        latents = encode_pictures(stack, pictures)
        noise = self._noise.batch(seeds or [0] * len(pictures), "subject", 0, number, latents.shape[1:])
        t = torch.full((len(pictures),), t_sub, device=stack.device)
        noisy = stack.schedule.add_noise(latents, noise.to(stack.device), t)
        text = encode_prompts(stack, [template.replace("{subject_class}", name) for name in subject_classes])
        return encode_latents(stack.unet, noisy.to(stack.dtype), t, text, px_per_latent=stack.px_per_latent)


@torch.no_grad()
def encode_latents(
    unet: nn.Module, noisy_latents: Tensor, t: Tensor, text: TextCondition, *, px_per_latent: int
) -> SubjectFeatures:
    """Subject features of noised latents (B, c, h, w) at timesteps (B,) under B texts; px_per_latent as in `call_unet`.

    One UNet forward without guidance or gradients; adapters, if attached, must be idle.
    """
    with record_norms(unet) as tokens:
        call_unet(unet, noisy_latents, t, text, px_per_latent=px_per_latent)
    return SubjectFeatures(tokens)


@contextmanager
def record_norms(unet: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect, by block name, what norm1 of every transformer block puts out: the input of self-attention."""
    tokens: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            tokens[name] = output

        return hook

    handles = [block.norm1.register_forward_hook(keep(name)) for name, block in transformer_blocks(unet).items()]
    try:
        yield tokens
    finally:
        for handle in handles:
            handle.remove()
