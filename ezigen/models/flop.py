"""Floating-point operations of network calls, as PyTorch's own counter sees them: one multiply-add is two."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

ResultT = TypeVar("ResultT")


def _attention_flop(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of the fused attention of CPUs, which the counter does not know."""
    count: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return count


_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}


def count_flop(call: Callable[[], ResultT]) -> tuple[ResultT, int]:
    """The call's result, bit for bit as without counting, and its matrix multiplications, convolutions and attention.

    Additions, norms and activations are left out, as everywhere in the field.
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        result = call()
    return result, counter.get_total_flops()


class FlopMeter:
    """Counts the first call of each kind and takes the next ones to cost as much: counting slows a call down."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def __call__(self, kind: Hashable, call: Callable[[], ResultT]) -> tuple[ResultT, int]:
        """The call's result and its FLOP. kind: whatever the shapes in the call depend on."""
        known = self._known.get(kind)
        if known is not None:
            return call(), known
        result, self._known[kind] = count_flop(call)
        return result, self._known[kind]
