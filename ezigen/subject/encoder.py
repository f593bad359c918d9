"""The frozen UNet as its own subject encoder (paper 3.1), or one that learns in its place."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ezigen.diffusion import NoiseSource
from ezigen.models.stack import Stack, decode_latents, encode_pictures, encode_prompts
from ezigen.models.text import TextCondition
from ezigen.models.unet import call_unet
from ezigen.subject.features import SubjectFeatures
from ezigen.subject.learned import LearnedEncoder, ProjectedTokens
from ezigen.subject.norms import record_norms

SUBJECT_PROMPT = "a photo of a {subject_class}."


class SubjectEncoder:
    """Subject pictures to features, with the weights that also make the images: there is no second network.

    learned: the adapters' own encoder, where they have one (`AdapterSet.subject_encoder`); gradients flow through it.
    """

    def __init__(self, stack: Stack, noise: NoiseSource | None = None, learned: LearnedEncoder | None = None) -> None:
        self._stack = stack
        self._noise = noise or NoiseSource()
        self._learned = learned

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
        An image encoder with projectors sees the picture alone.
        """
        stack = self._stack
        if isinstance(self._learned, ProjectedTokens):
            return self._learned(pictures)  # type: ignore[no-any-return]
        latents = encode_pictures(stack, pictures)
        noise = self._noise.batch(seeds or [0] * len(pictures), "subject", 0, number, latents.shape[1:])
        t = torch.full((len(pictures),), t_sub, device=stack.device)
        noisy = stack.schedule.add_noise(latents, noise.to(stack.device), t)
        text = encode_prompts(stack, [template.replace("{subject_class}", name) for name in subject_classes])
        return self._encode_noisy(noisy, t, text)

    def encode_stored(self, latents: Tensor, text: TextCondition, t: Tensor) -> SubjectFeatures:
        """As `encode` at timesteps (B,), from the pictures' latents (B, c, h, w) and encoded prompts: for training.

        An image encoder sees what the VAE makes of the latents, so that it needs no other store than the UNet does.
        """
        stack = self._stack
        if isinstance(self._learned, ProjectedTokens):
            return self._learned(decode_latents(stack, latents))  # type: ignore[no-any-return]
        noise = self._noise.noise(0, "subject", 0, 0, latents.shape[1:]).to(stack.device).expand_as(latents)
        t = t.to(stack.device)
        noisy = stack.schedule.add_noise(latents.float(), noise, t)
        return self._encode_noisy(noisy, t, text)

    def _encode_noisy(self, noisy: Tensor, t: Tensor, text: TextCondition) -> SubjectFeatures:
        stack = self._stack
        latents, size = noisy.to(stack.dtype), stack.px_per_latent
        if self._learned is not None:
            return self._learned(latents, t, text, px_per_latent=size)  # type: ignore[no-any-return]
        return encode_latents(stack.unet, latents, t, text, px_per_latent=size)


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
