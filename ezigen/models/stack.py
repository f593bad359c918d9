"""The frozen Stable Diffusion networks of one run, loaded and placed."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ezigen.config import ConfigurationError
from ezigen.diffusion import NoiseSchedule
from ezigen.models.fingerprint import model_fingerprint
from ezigen.models.location import (
    check_stack_folder,
    is_xl,
    resolve_folder,
    vae_overflows,
    zeros_for_no_text,
)
from ezigen.models.text import TextCondition

_LOG = logging.getLogger(__name__)
_LOCAL: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class Stack:
    """UNet, VAE, text encoder and tokenizer, all frozen, on one device in one precision, with their noise schedule.

    The VAE of Stable Diffusion XL overflows in fp16 unless its configuration says otherwise (force_upcast false): it
    then is in fp32.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: NoiseSchedule
    image_size_px: int
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    text_encoder_2: Any = None
    """Of Stable Diffusion XL; None for other models."""
    tokenizer_2: Any = None
    zeros_for_no_text: bool = False
    """Whether no text is embeddings of zeros instead of an empty prompt (force_zeros_for_empty_prompt)."""

    @property
    def text_networks(self) -> tuple[Any, ...]:
        """The text encoders: one, or two of Stable Diffusion XL."""
        return (self.text_encoder,) if self.text_encoder_2 is None else (self.text_encoder, self.text_encoder_2)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one latent: (4, 64, 64) for SD2.1-base."""
        side = self.latent_size
        return int(self.unet.config.in_channels), side, side

    @property
    def latent_size(self) -> int:
        """Side of a latent: 64 for SD2.1-base."""
        return int(self.unet.config.sample_size)

    @property
    def px_per_latent(self) -> int:
        """Pixels along a side per latent: 8 for Stable Diffusion."""
        return px_per_latent(self.vae)


def load_stack(model: str, *, device: str = "auto", dtype: str = "auto") -> Stack:
    """The networks of "mini", of a folder in diffusers format, or of a hub id; frozen and in evaluation mode.

    device: auto (a GPU if there is one), cpu, cuda. dtype: auto (fp32 on a CPU, bf16 on a GPU), fp32, bf16, fp16.
    Only safetensors are read. Raises ConfigurationError, with a remedy, for a missing, incomplete or unsuitable model.
    """
    place, precision = choose_placement(device, dtype)
    folder = resolve_folder(model)
    check_stack_folder(model, folder)
    try:
        with no_progress_bars():
            unet, vae = _load_networks(folder, precision)
            texts = _load_texts(folder, precision)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        # The libraries report a configuration that does not fit its weights in all of these ways.
        raise ConfigurationError(f"model {model}: {folder} does not load: {error}") from error
    schedule = NoiseSchedule.from_config(json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes()))
    _check_fits_together(model, unet, vae, texts)
    for network in (unet, vae, *(encoder for encoder, _ in texts)):
        network.requires_grad_(False).eval().to(place)
    if place.type == "cuda":
        # Convolutions in half precision run on tensor cores without transposing first.
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    return Stack(
        unet=unet,
        vae=vae,
        text_encoder=texts[0][0],
        tokenizer=texts[0][1],
        schedule=schedule,
        image_size_px=int(unet.config.sample_size) * px_per_latent(vae),
        fingerprint=model_fingerprint(model),
        device=place,
        dtype=precision,
        text_encoder_2=texts[1][0] if len(texts) > 1 else None,
        tokenizer_2=texts[1][1] if len(texts) > 1 else None,
        zeros_for_no_text=zeros_for_no_text(folder),
    )


def px_per_latent(vae: Any) -> int:
    """Pixels along a side per latent of a VAE: each level but one halves."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def choose_placement(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Device and precision that "auto" means here. Raises ConfigurationError for cuda without a GPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device cuda: torch sees no GPU here; use device auto or cpu")
    if dtype == "auto":
        dtype = "fp32" if device == "cpu" else "bf16"
    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype {dtype!r} is unknown; use auto, {', '.join(_DTYPES)}")
    return torch.device(device), _DTYPES[dtype]


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars for files that are already here; a run has its own bar."""
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    drawn = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            bars.enable_progress_bar()


def _load_networks(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The UNet and the VAE."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.utils import is_accelerate_available

    options: dict[str, Any] = {**_LOCAL, "low_cpu_mem_usage": is_accelerate_available()}
    unet = UNet2DConditionModel.from_pretrained(
        folder / "unet", torch_dtype=dtype, **_variant(folder / "unet"), **options
    )
    vae_dtype = torch.float32 if dtype == torch.float16 and vae_overflows(folder) else dtype
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=vae_dtype, **_variant(folder / "vae"), **options)
    return unet, vae


def _load_texts(folder: Path, dtype: torch.dtype) -> list[tuple[Any, Any]]:
    """Text encoders with their tokenizers: one, or two of Stable Diffusion XL."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    kinds: list[tuple[str, Any]] = [("", CLIPTextModel)]
    if is_xl(folder):
        kinds.append(("_2", CLIPTextModelWithProjection))
    return [
        (
            kind.from_pretrained(
                folder / f"text_encoder{suffix}", dtype=dtype, **_variant(folder / f"text_encoder{suffix}"), **_LOCAL
            ),
            CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}", local_files_only=True),
        )
        for suffix, kind in kinds
    ]


def _variant(folder: Path) -> dict[str, Any]:
    plain = [path for path in folder.glob("*.safetensors*") if ".fp16" not in path.name]
    return {} if plain else {"variant": "fp16"}


def _check_fits_together(model: str, unet: Any, vae: Any, texts: Sequence[tuple[Any, Any]]) -> None:
    if unet.config.in_channels != vae.config.latent_channels:
        raise ConfigurationError(
            f"model {model}: the UNet takes {unet.config.in_channels} channels, the VAE makes "
            f"{vae.config.latent_channels}; inpainting and depth models are not supported, use a text-to-image model"
        )
    for name in ("latents_mean", "latents_std", "shift_factor"):
        if getattr(vae.config, name, None) is not None:
            raise ConfigurationError(f"model {model}: a VAE with {name} is not supported; use another model")
    num_channels = sum(encoder.config.hidden_size for encoder, _ in texts)
    if unet.config.cross_attention_dim != num_channels:
        makes = "text encoder makes" if len(texts) == 1 else "text encoders together make"
        raise ConfigurationError(
            f"model {model}: the UNet attends to {unet.config.cross_attention_dim} text channels, "
            f"the {makes} {num_channels}; the folder mixes two models"
        )
    lengths = [_text_length(encoder, tokenizer) for encoder, tokenizer in texts]
    if len(set(lengths)) > 1:
        raise ConfigurationError(
            f"model {model}: its text encoders read {lengths[0]} and {lengths[1]} tokens; the folder mixes two models"
        )


@torch.no_grad()
def encode_prompts(stack: Stack, prompts: Sequence[str | None]) -> TextCondition:
    """The prompts as the UNet reads them: the last hidden state for each token, padded to the model's length L.

    For Stable Diffusion XL the last but one of both text encoders, channel after channel; what the second one projects
    is pooled (arXiv 2307.01952, Section 2.1).

    None is no text at all, what guidance compares with where there is no negative prompt. Words beyond L tokens (77 for
    Stable Diffusion) have no influence; a warning says so.
    """
    tokens = tokenize_prompts(stack, [prompt or "" for prompt in prompts])
    masked = getattr(stack.text_encoder.config, "use_attention_mask", False)
    text = encode_token_ids(stack, tokens.input_ids, tokens.attention_mask if masked else None)
    given = torch.tensor([prompt is not None for prompt in prompts])
    if stack.zeros_for_no_text and not given.all():
        text = text.where(given.to(stack.device), text.empty_slots(1))
    return text


@torch.no_grad()
def encode_token_ids(stack: Stack, token_ids: Tensor, attention_mask: Tensor | None = None) -> TextCondition:
    """Texts of what `tokenize_prompts` gives, which may be masked only for a model with one text encoder."""
    token_ids = token_ids.to(stack.device)
    if stack.text_encoder_2 is None:
        mask = None if attention_mask is None else attention_mask.to(stack.device)
        return TextCondition(stack.text_encoder(token_ids, attention_mask=mask)[0])
    halves = token_ids.chunk(2, dim=1)
    first, second = (
        encoder(ids, output_hidden_states=True) for encoder, ids in zip(stack.text_networks, halves, strict=True)
    )
    tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return TextCondition(tokens, second.text_embeds)


def tokenize_prompts(stack: Stack, prompts: Sequence[str]) -> Any:
    """What the text encoder takes, on the CPU: `input_ids` and `attention_mask`, both (B, L) int64; see
    `encode_prompts`. For Stable Diffusion XL (B, 2 L): what the first one takes, then what the second one does.
    """
    length = _text_length(stack.text_encoder, stack.tokenizer)
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
    tokens = stack.tokenizer(list(prompts), return_tensors="pt", **options)
    for prompt, real_tokens in zip(prompts, tokens.attention_mask.sum(dim=1).tolist(), strict=True):
        if real_tokens == length:
            _warn_if_cut(stack, prompt, length)
    if stack.tokenizer_2 is not None:  # the same words, but another padding
        others = stack.tokenizer_2(list(prompts), return_tensors="pt", **options)
        for name in ("input_ids", "attention_mask"):
            tokens[name] = torch.cat([tokens[name], others[name]], dim=1)
    return tokens


def _text_length(encoder: Any, tokenizer: Any) -> int:
    return int(min(tokenizer.model_max_length, encoder.config.max_position_embeddings))


@torch.no_grad()
def encode_pictures(stack: Stack, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
    """Latents (B, c, h, w) in fp32, scaled as the UNet expects them, of pixels (B, 3, H, W) in [-1, 1].

    The mean of the VAE's posterior, or with unit noise (B, c, h, w) a draw from it.
    """
    posterior = stack.vae.encode(pixels.to(stack.device, stack.vae.dtype)).latent_dist
    latents: Tensor = posterior.mean.float()
    if noise is not None:
        latents = latents + posterior.std.float() * noise.to(stack.device)
    scaled: Tensor = latents * stack.vae.config.scaling_factor
    return scaled


@torch.no_grad()
def encode_posterior(stack: Stack, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the VAE's posterior of pixels (B, 3, H, W) in [-1, 1]: (B, c, h, w) each, in fp32.

    Both are scaled as the UNet expects them (the mean by the scaling factor, the variance by its square), so that
    mean + sqrt(variance) * noise is a latent.
    """
    posterior = stack.vae.encode(pixels.to(stack.device, stack.vae.dtype)).latent_dist
    factor = stack.vae.config.scaling_factor
    return posterior.mean.float() * factor, posterior.logvar.float().exp() * factor**2


@torch.no_grad()
def decode_latents(stack: Stack, latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in fp32, about [-1, 1] and not clipped, of scaled latents (B, c, h, w)."""
    unscaled = latents / stack.vae.config.scaling_factor
    pixels: Tensor = stack.vae.decode(unscaled.to(stack.device, stack.vae.dtype)).sample
    return pixels.float()


def _warn_if_cut(stack: Stack, prompt: str, length: int) -> None:
    num_tokens = len(stack.tokenizer(prompt, truncation=False, verbose=False).input_ids)
    if num_tokens > length:
        _LOG.warning("prompt of %d tokens is cut to %d: %.60s...", num_tokens, length, prompt)
