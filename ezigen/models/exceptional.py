"""The prompt that says nothing, under which a picture is inverted (TF-ICON, arXiv 2307.12493)."""

from typing import Any

import torch
from torch import Tensor

from ezigen.models.stack import Stack, encode_prompts


@torch.no_grad()
def encode_exceptional(stack: Stack, token_id: int = 7788) -> Tensor:
    """Text embeddings (1, L, D) of one token, repeated over the model's length L without positional embeddings.

    A vocabulary that has no such token takes the remainder of its number: what matters is that it is always the same.
    """
    config = stack.text_encoder.config
    length = encode_prompts(stack, [""]).shape[1]
    tokens = torch.full((1, length), token_id % config.vocab_size, device=stack.device)
    positions = next(
        module for name, module in stack.text_encoder.named_modules() if name.endswith("position_embedding")
    )
    handle = positions.register_forward_hook(_nothing)
    try:
        embeddings: Tensor = stack.text_encoder(tokens)[0]
    finally:
        handle.remove()
    return embeddings


def _nothing(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)
