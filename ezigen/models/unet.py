"""The one place where a UNet is called."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ezigen.models.text import TextCondition


def call_unet(
    unet: Callable[..., Any], latents: Tensor, t: Tensor, text: TextCondition, *, px_per_latent: int
) -> Tensor:
    """What the UNet predicts of noised latents (B, c, h, w) at timesteps (B,) under B texts: (B, c, h, w).

    px_per_latent: pixels along a side per latent (8 for Stable Diffusion): models with pooled texts are told, too,
    that the picture is h x w latents large and not cropped (arXiv 2307.01952, Section 2.2).
    """
    added = None
    if text.pooled is not None:
        height, width = (side * px_per_latent for side in latents.shape[-2:])
        # Original size, top left corner of the crop, size it was trained at: a picture that is all there.
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=latents.device)
        added = {"text_embeds": text.pooled, "time_ids": sizes.expand(len(latents), -1)}
    output: Tensor = unet(latents, t, text.tokens, added_cond_kwargs=added, return_dict=False)[0]
    return output
