"""The prompt that says nothing, under which a picture is inverted (TF-ICON, arXiv 2307.12493)."""

from typing import Any

import torch
from torch import Tensor

from ezigen.models.stack import Stack, encode_token_ids, tokenize_prompts
from ezigen.models.text import TextCondition


@torch.no_grad()
def encode_exceptional(stack: Stack, token_id: int = 7788) -> TextCondition:
    """One text: a token, repeated over the model's length without positional embeddings.

    A vocabulary that has no such token takes the remainder of its number: what matters is that it is always the same.
    """
    num_tokens = min(encoder.config.vocab_size for encoder in stack.text_networks)
    ids = torch.full_like(tokenize_prompts(stack, [""]).input_ids, token_id % num_tokens)
    positions = [
        module
        for encoder in stack.text_networks
        for name, module in encoder.named_modules()
        if name.endswith("position_embedding")
    ]
    handles = [module.register_forward_hook(_nothing) for module in positions]
    try:
        return encode_token_ids(stack, ids)
    finally:
        for handle in handles:
            handle.remove()


def _nothing(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)
