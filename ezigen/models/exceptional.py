"""The prompt that says nothing, under which a picture is inverted (TF-ICON, arXiv 2307.12493)."""

from typing import Any

import torch
from torch import Tensor

from ezigen.models.stack import Stack, tokenize_prompts
from ezigen.models.text import TextCondition


@torch.no_grad()
def encode_exceptional(stack: Stack, token_id: int = 7788) -> TextCondition:
    """One text: a token, repeated over the model's length without positional embeddings.

    A vocabulary that has no such token takes the remainder of its number: what matters is that it is always the same.
    """
    config = stack.text_encoder.config
    ids = torch.full_like(tokenize_prompts(stack, [""]).input_ids, token_id % config.vocab_size)
    positions = next(
        module for name, module in stack.text_encoder.named_modules() if name.endswith("position_embedding")
    )
    handle = positions.register_forward_hook(_nothing)
    try:
        return TextCondition(stack.text_encoder(ids.to(stack.device))[0])
    finally:
        handle.remove()


def _nothing(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)
