"""Computing in a lower precision than that of the weights."""

from contextlib import AbstractContextManager, nullcontext

import torch


def mixed_precision(device: torch.device, compute: torch.dtype, weights: torch.dtype) -> AbstractContextManager[object]:
    """Autocast for weights of a higher precision than what is computed in; nothing where both are the same.

    In training, what learns keeps fp32 weights beside a UNet that is frozen in bf16.
    """
    return nullcontext() if compute == weights else torch.autocast(device.type, compute)
