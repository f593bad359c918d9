"""In which precision a run computes."""

from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from ezigen.config import ConfigurationError, TrainingConfig
from ezigen.models import Stack

Precision = Literal["fp32", "bf16"]


def choose_precision(config: TrainingConfig, device: torch.device) -> Precision:
    """What "auto" means on this device: bf16 on a GPU, fp32 on a CPU."""
    if config.precision == "auto":
        return "fp32" if device.type == "cpu" else "bf16"
    return config.precision


def check_precision(stack: Stack, precision: Precision) -> None:
    """Raises ConfigurationError when fp32 is wanted of networks that were loaded rounded."""
    if precision == "fp32" and stack.dtype != torch.float32:
        raise ConfigurationError(
            f"training.precision is fp32, but the model is loaded in {stack.dtype}; set model.dtype to fp32"
        )


def cast_stack(stack: Stack, precision: Precision) -> Stack:
    """The stack with its networks in this precision, cast in place: the given stack is not to be used any more."""
    if precision == "fp32":
        return stack
    for network in (stack.unet, stack.vae, *stack.text_networks):
        nn.Module.to(network, torch.bfloat16)  # diffusers' own `to` warns of modules to keep in fp32; here are none
    return replace(stack, dtype=torch.bfloat16)
