"""What a model's features look like and cost, from its configuration files alone."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ezigen.config import ConfigurationError
from ezigen.models import TextCondition, call_unet
from ezigen.models.blocks import transformer_blocks
from ezigen.models.location import check_stack_folder, is_xl, resolve_folder
from ezigen.subject import record_norms


@dataclass(frozen=True)
class BlockLayout:
    """A transformer block's name and the shape of its subject tokens (num_tokens, num_channels) for one picture."""

    name: str
    num_tokens: int
    num_channels: int

    @property
    def num_values(self) -> int:
        """Numbers per subject."""
        return self.num_tokens * self.num_channels


@dataclass(frozen=True)
class EncodingCost:
    """Floating-point operations for one picture or text; a multiply-add counts two."""

    vae_flop: float
    unet_flop: float
    text_flop: float

    @property
    def subject_flop(self) -> float:
        """Encoding one subject from its picture: VAE, prompt, one UNet forward."""
        return self.vae_flop + self.unet_flop + self.text_flop


@dataclass(frozen=True)
class ModelShape:
    """The shapes that a Stable Diffusion stack gives to what is stored."""

    size_px: int
    latent_shape: tuple[int, int, int]
    text_shape: tuple[int, int]
    blocks: tuple[BlockLayout, ...]
    cost: EncodingCost
    pooled_channels: int = 0

    @classmethod
    def of(cls, model: str) -> "ModelShape":
        """The shape of "mini", of a folder in diffusers format, or of a hub id, without reading its weights.

        Raises ConfigurationError like `load_stack`.
        """
        folder = resolve_folder(model)
        check_stack_folder(model, folder)
        try:
            with torch.device("meta"):
                return _measure(folder)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            # As in `load_stack`: the libraries report a configuration that makes no network in all of these ways.
            raise ConfigurationError(f"model {model}: {folder} describes no usable model: {error}") from error


def _measure(folder: Path) -> ModelShape:
    """Runs the networks without numbers: on the meta device only shapes and operations exist."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(_read_config(folder / "unet"))
    vae = AutoencoderKL.from_config(_read_config(folder / "vae"))
    text_encoders = _text_encoders(folder)
    side = int(unet.config.sample_size)
    size_px = side * 2 ** (len(vae.config.block_out_channels) - 1)
    latent_shape = (int(unet.config.in_channels), side, side)
    num_text_channels = sum(int(encoder.config.hidden_size) for encoder in text_encoders)
    text_shape = (_text_length(folder, text_encoders[0]), num_text_channels)
    pooled_channels = int(text_encoders[1].config.projection_dim) if len(text_encoders) > 1 else 0
    text = TextCondition(torch.empty(1, *text_shape), torch.empty(1, pooled_channels) if pooled_channels else None)
    with record_norms(unet) as tokens:
        unet_flop = _count_flop(
            call_unet, unet, torch.empty(1, *latent_shape), torch.ones(1), text, px_per_latent=size_px // side
        )
    cost = EncodingCost(
        vae_flop=_count_flop(vae.encode, torch.empty(1, 3, size_px, size_px)),
        unet_flop=unet_flop,
        text_flop=sum(
            _count_flop(encoder, torch.ones(1, text_shape[0], dtype=torch.long)) for encoder in text_encoders
        ),
    )
    blocks = tuple(BlockLayout(name, *tokens[name].shape[1:]) for name in transformer_blocks(unet))
    return ModelShape(size_px, latent_shape, text_shape, blocks, cost, pooled_channels)


def _text_encoders(folder: Path) -> list[Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kinds: list[tuple[str, Any]] = [("text_encoder", CLIPTextModel)]
    if is_xl(folder):
        kinds.append(("text_encoder_2", CLIPTextModelWithProjection))
    return [
        kind(CLIPTextConfig.from_pretrained(folder / component, local_files_only=True)) for component, kind in kinds
    ]


def _count_flop(network: Callable[..., Any], *inputs: Any, **named: Any) -> float:
    # On the meta device the counter sees attention too; on the CPU it counts zero for it.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs, **named)
    return float(counter.get_total_flops())


def _text_length(folder: Path, text_encoder: Any) -> int:
    """Tokens of a text, as `encode_prompts` pads it."""
    longest = int(text_encoder.config.max_position_embeddings)
    return min(
        int(json.loads((folder / "tokenizer" / "tokenizer_config.json").read_bytes())["model_max_length"]), longest
    )


def _read_config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return content
