"""8-bit floats with one scale per token."""

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""Largest number of e4m3."""

RELATIVE_ERROR = 2.0**-4
"""Of a number that is normal in e4m3: half of its last place, with three bits after the point."""

SUBNORMAL_STEP = 2.0**-9
"""Distance of neighbouring numbers below e4m3's smallest normal one, 2^-6."""


def quantize(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 values (..., C) and fp32 scales (...): tokens = values * scales up to `error_bound`.

    A token's scale puts its largest number on e4m3's largest; a token of zeros has scale 1.
    """
    wide = tokens.float()
    scales = wide.abs().amax(dim=-1) / FP8_MAX
    # A scale below fp32's normal range would lose the very bits that it is there to keep.
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, 1.0, scales)
    # Division may round the largest number up beyond e4m3, which would make it NaN.
    scaled = (wide / scales[..., None]).clamp(-FP8_MAX, FP8_MAX)
    return scaled.to(FP8), scales


def dequantize(values: Tensor, scales: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Tokens (..., C) of e4m3 values (..., C), none of them NaN, and scales (...)."""
    if values.device.type != "cpu":
        return (values.float() * scales[..., None]).to(dtype)
    # On a CPU torch converts number by number, six times slower than shifting bits: fp16 has the same bits in other
    # places, one more of the exponent, whose bias makes the number 2^8 times smaller. Powers of two are exact.
    bits = values.view(torch.int8).to(torch.int16)
    bits <<= 7
    bits &= ~0x4000  # what the sign left there
    tokens = bits.view(torch.float16).float()
    tokens *= (scales * 256)[..., None]
    return tokens.to(dtype)


def error_bound(tokens: Tensor) -> Tensor:
    """The largest difference that `quantize` may make to each number of tokens (..., C), in fp32.

    2^-4 of the number itself; near zero half a subnormal step, 2^-10, of the token's scale.
    """
    wide = tokens.float().abs()
    step = SUBNORMAL_STEP * wide.amax(dim=-1, keepdim=True) / FP8_MAX
    # The scale is itself rounded, and so are the two multiplications; below fp32's normal range everything becomes 0.
    lost = FP8_MAX * torch.finfo(torch.float32).tiny
    return torch.maximum(RELATIVE_ERROR * wide, step / 2) * (1 + 2.0**-20) + lost
