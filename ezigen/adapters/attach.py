"""Putting adapters into a frozen UNet and taking them out again."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ezigen.adapters.adapter import KeyValue, SubjectAdapter
from ezigen.config import SubjectEncoderKind
from ezigen.models.blocks import STOCK, transformer_blocks
from ezigen.models.precision import mixed_precision
from ezigen.subject.features import SubjectFeatures, stack_masks, stack_tokens
from ezigen.subject.learned import LearnedEncoder

_SIDES = ("down", "mid", "up")


@dataclass(frozen=True)
class SubjectKV:
    """Keys and values of subjects, per block, computed once and used at every step, loop and guidance branch.

    pairs: block name -> (keys, values), each (B, heads, N, head_dim); mask as in SubjectFeatures.
    """

    pairs: dict[str, KeyValue]
    mask: dict[str, Tensor] | None = None

    @property
    def batch_size(self) -> int:
        """Number of samples B."""
        return len(next(iter(self.pairs.values()))[0])

    def full_mask(self) -> dict[str, Tensor]:
        """The mask, written out also where every token exists."""
        if self.mask is not None:
            return self.mask
        shapes = {name: (len(key), key.shape[2]) for name, (key, _) in self.pairs.items()}
        return {
            name: torch.ones(shape, dtype=torch.bool, device=self.pairs[name][0].device)
            for name, shape in shapes.items()
        }

    @classmethod
    def stack(cls, samples: Sequence["SubjectKV"]) -> "SubjectKV":
        """Samples joined along the batch; those with fewer tokens are padded and masked."""
        pairs = {
            name: (stack_tokens([s.pairs[name][0] for s in samples]), stack_tokens([s.pairs[name][1] for s in samples]))
            for name in samples[0].pairs
        }
        num_tokens = [[key.shape[2] for key, _ in s.pairs.values()] for s in samples]
        complete = all(s.mask is None for s in samples) and all(n == num_tokens[0] for n in num_tokens)
        return cls(pairs, None if complete else stack_masks([s.full_mask() for s in samples]))


@dataclass
class _Activation:
    """What the blocks of one UNet attend to right now; None means stock blocks."""

    subject: SubjectKV | None = None
    gate: Tensor | None = None


class SubjectBlock(nn.Module):
    """A BasicTransformerBlock with a subject adapter between its self-attention and its text cross-attention.

    Idle, it calls the stock block and nothing else, so it equals it bit for bit. The adapter is held outside of the
    module tree: the UNet's own parameters and state dict stay those of the frozen network.
    """

    def __init__(self, name: str, stock: nn.Module, adapter: SubjectAdapter, activation: _Activation) -> None:
        super().__init__()
        self.name = name
        self.add_module(STOCK, stock)
        self.__dict__["adapter"] = adapter
        self._activation = activation
        self.train(stock.training)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """As BasicTransformerBlock.forward, with h2 = h1 + adapter(h1, subject) while a subject is active."""
        block: Any = self.stock
        if self._activation.subject is None:
            stock: Tensor = block(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,
                cross_attention_kwargs,
                class_labels,
                added_cond_kwargs,
            )
            return stock
        kwargs = cross_attention_kwargs or {}
        hidden = block.attn1(block.norm1(hidden_states), attention_mask=attention_mask, **kwargs) + hidden_states
        hidden = self._attend_to_subject(hidden, self._activation.subject, self._activation.gate)
        hidden = (
            block.attn2(
                block.norm2(hidden),
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                **kwargs,
            )
            + hidden
        )
        result: Tensor = block.ff(block.norm3(hidden)) + hidden
        return result

    def _attend_to_subject(self, hidden: Tensor, subject: SubjectKV, gate: Tensor | None) -> Tensor:
        mask = None if subject.mask is None else subject.mask[self.name]
        adapter: SubjectAdapter = self.__dict__["adapter"]
        with mixed_precision(hidden.device, hidden.dtype, adapter.subject_weight.dtype):
            h2: Tensor = adapter(hidden, subject.pairs[self.name], mask, gate)
        return h2.to(hidden.dtype)


class AdapterSet(nn.Module):
    """The trainable part of EZIGen: one SubjectAdapter per transformer block that carries one, by name. And, where it
    is not the frozen UNet, what encodes the subjects (see `add_subject_encoder`).

    Idle until `active` or `activate`. One set serves one UNet call at a time: threads sharing a UNet must take turns.
    """

    def __init__(self, adapters: dict[str, SubjectAdapter], num_skipped: int = 0) -> None:
        """num_skipped: blocks of the UNet that stay without an adapter."""
        super().__init__()
        self.names = tuple(adapters)
        self.num_skipped = num_skipped
        # A ModuleDict allows no dots in its keys; `tensors` gives the names that are stored.
        self.modules_by_key = nn.ModuleDict({_key(name): adapter for name, adapter in adapters.items()})
        self.subject_encoder: LearnedEncoder | None = None
        self._activation = _Activation()

    def __getitem__(self, name: str) -> SubjectAdapter:
        adapter = self.modules_by_key[_key(name)]
        assert isinstance(adapter, SubjectAdapter)
        return adapter

    def __len__(self) -> int:
        return len(self.names)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters by stored name: block name, a dot, and the adapter's own name, e.g. `{block}.to_q.weight`; then
        those of a subject encoder that learns, after `subject_encoder.`.
        """
        found: dict[str, Tensor] = {
            f"{name}.{key}": tensor for name in self.names for key, tensor in self[name].named_parameters()
        }
        if self.subject_encoder is not None:
            found |= {f"subject_encoder.{name}": tensor for name, tensor in self.subject_encoder.tensors().items()}
        return found

    @property
    def subject_encoder_kind(self) -> SubjectEncoderKind:
        """What encodes the subjects: the frozen UNet, or what learned to."""
        return "frozen" if self.subject_encoder is None else self.subject_encoder.kind

    @property
    def num_parameters(self) -> int:
        """Trainable numbers: 49,599,056 for SD2.1-base, where the subject encoder is frozen."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    def subject_kv(self, features: SubjectFeatures) -> SubjectKV:
        """Keys and values of the subjects, with gradients where they are enabled."""
        if missing := set(self.names) - set(features.tokens):
            raise ValueError(f"subject features lack the blocks {sorted(missing)}: they come from another UNet")
        mask = None if features.mask is None else {name: features.mask[name] for name in self.names}
        return SubjectKV({name: self[name].key_value(features.tokens[name]) for name in self.names}, mask)

    def activate(self, subject: SubjectFeatures | SubjectKV, gate: Tensor | None = None) -> None:
        """Make the UNet's blocks attend to these subjects until `deactivate`.

        The UNet may then be called with the subjects' batch size B or a multiple of it (guidance branches, one after
        the other). gate (B,) of 0 or 1: samples with 0 leave every block exactly as the stock one.
        """
        kv = subject if isinstance(subject, SubjectKV) else self.subject_kv(subject)
        self._activation.subject, self._activation.gate = kv, gate

    def deactivate(self) -> None:
        """Make every block a stock block again."""
        self._activation.subject = self._activation.gate = None

    @contextmanager
    def active(self, subject: SubjectFeatures | SubjectKV, gate: Tensor | None = None) -> Iterator[None]:
        """Attend to these subjects inside the block (see `activate`).

        With gradient checkpointing the backward pass runs the blocks again: it belongs inside, too, or whoever runs
        them again does so in `as_now`.
        """
        before = self._activation.subject, self._activation.gate
        self.activate(subject, gate)
        try:
            yield
        finally:
            self._activation.subject, self._activation.gate = before

    def as_now(self) -> AbstractContextManager[None]:
        """A context, to be entered later, in which the blocks attend to what they attend to now."""
        subject, gate = self._activation.subject, self._activation.gate
        return nullcontext() if subject is None else self.active(subject, gate)


def attach_adapters(unet: nn.Module, *, extra_residual: bool = False, blocks: Sequence[str] = ()) -> AdapterSet:
    """Wrap transformer blocks of the UNet and freeze the UNet; the adapters come back idle and trainable.

    blocks: as `choose_blocks`; the others stay as they are. While adapters are attached, the UNet's state dict has
    other names: detach them before saving it. Raises ValueError when the UNet carries adapters already, has a kind of
    block that Stable Diffusion does not, or none that is wanted.
    """
    found = transformer_blocks(unet)
    for name, block in found.items():
        _check_attachable(unet, name, block)
    if not found:
        raise ValueError(f"{type(unet).__name__} has no transformer blocks to adapt")
    chosen = {name: found[name] for name in choose_blocks(tuple(found), blocks)}
    unet.requires_grad_(False)
    adapters = AdapterSet(
        {name: SubjectAdapter.from_block(block, extra_residual=extra_residual) for name, block in chosen.items()},
        len(found) - len(chosen),
    )
    adapters.requires_grad_(True)
    for name, block in chosen.items():
        _replace(unet, name, SubjectBlock(name, block, adapters[name], adapters._activation))
    return adapters


def choose_blocks(names: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The block names that are wanted, in their own order; all of them where nothing is said.

    wanted: `down`, `mid`, `up`, or patterns of names such as `up_blocks.3.*`. Raises ValueError for one that meets no
    block, naming it.
    """
    if not wanted:
        return tuple(names)
    patterns = {one: f"{one}_block*" if one in _SIDES else one for one in wanted}
    for one, pattern in patterns.items():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"adapter blocks {one!r}: no block of this UNet has such a name; use {', '.join(_SIDES)} or a pattern "
                f"of names like {names[0]}"
            )
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns.values()))


def detach_adapters(unet: nn.Module) -> None:
    """Put the stock blocks back; nothing of the wrapper remains. Does nothing to a UNet without adapters."""
    for name, block in transformer_blocks(unet).items():
        _replace(unet, name, block)


@contextmanager
def detached(unet: nn.Module) -> Iterator[None]:
    """Inside the block the UNet is the stock one, to be saved or compared; afterwards its adapters are back."""
    wrappers = {name: unet.get_submodule(name) for name in transformer_blocks(unet)}
    detach_adapters(unet)
    try:
        yield
    finally:
        for name, module in wrappers.items():
            _replace(unet, name, module)


def _check_attachable(unet: nn.Module, name: str, block: Any) -> None:
    if unet.get_submodule(name) is not block:
        raise ValueError(f"the UNet has adapters already (block {name}); detach_adapters first")
    plain = block.norm_type == "layer_norm" and block.pos_embed is None
    if not plain or block.attn2 is None or block.only_cross_attention:
        raise ValueError(f"block {name} is not one of Stable Diffusion's (layer norm, self-attention, cross-attention)")


def _replace(unet: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    unet.get_submodule(parent).register_module(child, module)


def _key(name: str) -> str:
    return name.replace(".", "/")
