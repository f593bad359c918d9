"""Subject features in the precision in which they are stored, and back."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ezigen.subject import SubjectFeatures
from tasks.features.fp8 import dequantize, quantize
from tasks.features.schema import DTYPES


@dataclass(frozen=True, eq=False)
class PackedFeatures:
    """Tokens of B subjects as they are stored; move these to a GPU and unpack there to move fewer bytes.

    values: block -> (B, N, C) fp16, bf16 or e4m3. scales: block -> (B, N) fp32 for e4m3. mask: as in SubjectFeatures.
    """

    values: dict[str, Tensor]
    scales: dict[str, Tensor] | None = None
    mask: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, features: SubjectFeatures, dtype: str) -> "PackedFeatures":
        """Features cast, or quantized, to fp16, bf16 or fp8 where they lie."""
        if dtype != "fp8":
            values = {name: tokens.to(DTYPES[dtype]) for name, tokens in features.tokens.items()}
            return cls(values, mask=features.mask)
        pairs = {name: quantize(tokens) for name, tokens in features.tokens.items()}
        return cls({n: v for n, (v, _) in pairs.items()}, {n: s for n, (_, s) in pairs.items()}, features.mask)

    def to(self, device: torch.device | str) -> "PackedFeatures":
        """The same on a device."""
        return PackedFeatures(
            _moved(self.values, device),
            None if self.scales is None else _moved(self.scales, device),
            None if self.mask is None else _moved(self.mask, device),
        )

    def unpack(self, dtype: torch.dtype | None = None) -> SubjectFeatures:
        """Features in a precision; by default the stored one, and fp16 for fp8."""
        if self.scales is None:
            tokens = self.values if dtype is None else {name: v.to(dtype) for name, v in self.values.items()}
        else:
            wanted = dtype or torch.float16
            tokens = {name: dequantize(v, self.scales[name], wanted) for name, v in self.values.items()}
        return SubjectFeatures(tokens, self.mask)

    def check_finite(self, ids: tuple[str, ...]) -> None:
        """Raises ValueError that names subject and block where a value is infinite or no number."""
        checked: Mapping[str, Tensor] = self.values if self.scales is None else self.scales
        for name, values in checked.items():
            # One number per subject leaves the device.
            good = torch.isfinite(values).flatten(1).all(dim=1)
            if not good.all():
                index = int((~good).nonzero()[0])
                raise ValueError(
                    f"subject {ids[index]}: block {name} has values that are infinite or no number; the model is "
                    "damaged, or its precision too low: try dtype fp32 or bf16."
                )


def _moved(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
