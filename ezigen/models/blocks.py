"""The transformer blocks of a Stable Diffusion UNet, by name."""

from typing import Any

from torch import nn

STOCK = "stock"
"""Attribute under which a wrapper keeps the library's own block; left out of block names."""


def transformer_blocks(unet: nn.Module) -> dict[str, Any]:
    """Every BasicTransformerBlock of the UNet by its module path, the same whether adapters are attached or not.

    The path, e.g. `down_blocks.0.attentions.0.transformer_blocks.0`, is the key of subject features and adapters.
    The order is that of registration (down, up, mid), which is not the order of execution: never index by position.
    """
    from diffusers.models.attention import BasicTransformerBlock

    return {
        name.removesuffix("." + STOCK): module
        for name, module in unet.named_modules()
        if isinstance(module, BasicTransformerBlock)
    }
