"""Listening to a UNet: what its transformer blocks attend to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ezigen.models.blocks import transformer_blocks


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
