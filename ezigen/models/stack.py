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
from ezigen.models.location import check_stack_folder, resolve_folder
from ezigen.models.text import TextCondition

_LOG = logging.getLogger(__name__)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class Stack:
    """UNet, VAE, text encoder and tokenizer, all frozen, on one device in one precision, with their noise schedule."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: NoiseSchedule
    image_size_px: int
    fingerprint: str
    device: torch.device
    dtype: torch.dtype

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
        return self.image_size_px // self.latent_size


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
            unet, vae, text_encoder, tokenizer = _load_networks(folder, precision)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        # The libraries report a configuration that does not fit its weights in all of these ways.
        raise ConfigurationError(f"model {model}: {folder} does not load: {error}") from error
    schedule = NoiseSchedule.from_config(json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes()))
    _check_fits_together(model, unet, vae, text_encoder)
    for network in (unet, vae, text_encoder):
        network.requires_grad_(False).eval().to(place)
    if place.type == "cuda":
        # Convolutions in half precision run on tensor cores without transposing first.
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    downscale = 2 ** (len(vae.config.block_out_channels) - 1)
    return Stack(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        schedule=schedule,
        image_size_px=int(unet.config.sample_size) * downscale,
        fingerprint=model_fingerprint(model),
        device=place,
        dtype=precision,
    )


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


def _load_networks(folder: Path, dtype: torch.dtype) -> tuple[Any, Any, Any, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.utils import is_accelerate_available
    from transformers import CLIPTextModel, CLIPTokenizer

    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    diffusers_options: dict[str, Any] = {
        **options,
        "torch_dtype": dtype,
        "low_cpu_mem_usage": is_accelerate_available(),
    }
    return (
        UNet2DConditionModel.from_pretrained(folder / "unet", **_variant(folder / "unet"), **diffusers_options),
        AutoencoderKL.from_pretrained(folder / "vae", **_variant(folder / "vae"), **diffusers_options),
        CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, **_variant(folder / "text_encoder"), **options
        ),
        CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
    )


def _variant(folder: Path) -> dict[str, Any]:
    plain = [path for path in folder.glob("*.safetensors*") if ".fp16" not in path.name]
    return {} if plain else {"variant": "fp16"}


def _check_fits_together(model: str, unet: Any, vae: Any, text_encoder: Any) -> None:
    if unet.config.in_channels != vae.config.latent_channels:
        raise ConfigurationError(
            f"model {model}: the UNet takes {unet.config.in_channels} channels, the VAE makes "
            f"{vae.config.latent_channels}; inpainting and depth models are not supported, use a text-to-image model"
        )
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise ConfigurationError(
            f"model {model}: the UNet attends to {unet.config.cross_attention_dim} text channels, "
            f"the text encoder makes {text_encoder.config.hidden_size}; the folder mixes two models"
        )


@torch.no_grad()
def encode_prompts(stack: Stack, prompts: Sequence[str | None]) -> TextCondition:
    """The prompts as the UNet reads them: the last hidden state for each token, padded to the model's length L.

    None is no text at all, what guidance compares with where there is no negative prompt. Words beyond L tokens (77 for
    Stable Diffusion) have no influence; a warning says so.
    """
    tokens = tokenize_prompts(stack, [prompt or "" for prompt in prompts])
    masked = getattr(stack.text_encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(stack.device) if masked else None
    embeddings: Tensor = stack.text_encoder(tokens.input_ids.to(stack.device), attention_mask=mask)[0]
    return TextCondition(embeddings)


def tokenize_prompts(stack: Stack, prompts: Sequence[str]) -> Any:
    """What the text encoder takes, on the CPU: `input_ids` and `attention_mask`, both (B, L) int64; see
    `encode_prompts`.
    """
    length = min(stack.tokenizer.model_max_length, stack.text_encoder.config.max_position_embeddings)
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
    tokens = stack.tokenizer(list(prompts), return_tensors="pt", **options)
    for prompt, real_tokens in zip(prompts, tokens.attention_mask.sum(dim=1).tolist(), strict=True):
        if real_tokens == length:
            _warn_if_cut(stack, prompt, length)
    return tokens


@torch.no_grad()
def encode_pictures(stack: Stack, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
    """Latents (B, c, h, w) in fp32, scaled as the UNet expects them, of pixels (B, 3, H, W) in [-1, 1].

    The mean of the VAE's posterior, or with unit noise (B, c, h, w) a draw from it.
    """
    posterior = stack.vae.encode(pixels.to(stack.device, stack.dtype)).latent_dist
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
    posterior = stack.vae.encode(pixels.to(stack.device, stack.dtype)).latent_dist
    factor = stack.vae.config.scaling_factor
    return posterior.mean.float() * factor, posterior.logvar.float().exp() * factor**2


@torch.no_grad()
def decode_latents(stack: Stack, latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in fp32, about [-1, 1] and not clipped, of scaled latents (B, c, h, w)."""
    unscaled = latents / stack.vae.config.scaling_factor
    pixels: Tensor = stack.vae.decode(unscaled.to(stack.device, stack.dtype)).sample
    return pixels.float()


def _warn_if_cut(stack: Stack, prompt: str, length: int) -> None:
    num_tokens = len(stack.tokenizer(prompt, truncation=False, verbose=False).input_ids)
    if num_tokens > length:
        _LOG.warning("prompt of %d tokens is cut to %d: %.60s...", num_tokens, length, prompt)
