"""Networks of Stable Diffusion's shapes with random weights, so that speed needs no download."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ezigen.diffusion import NoiseSchedule
from ezigen.models import Stack, resolve_folder
from ezigen.models.stack import choose_placement

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def build_stack(
    divisor: int, device: str, *, dtype: str = "fp32", image_size_px: int = 256, model: str = "sd21"
) -> Stack:
    """Stable Diffusion 2.1-base (512 px by itself) or XL-base (1024 px) with its channels divided."""
    torch.manual_seed(0)
    place, precision = choose_placement(device, dtype)
    tokenizer = CLIPTokenizer.from_pretrained(resolve_folder("mini") / "tokenizer", local_files_only=True)
    build = _build_sdxl if model == "sdxl" else _build_sd21
    # On the device and in the precision from the start: XL in fp32 would fill a machine.
    with _default_dtype(precision), place:
        unet = build(divisor, image_size_px // 8)
        vae = _build_vae(divisor, image_size_px)
        texts = _build_texts(model, divisor, tokenizer)
    for network in (unet, vae, *texts):
        nn.Module.to(network.requires_grad_(False).eval(), place, precision)
    if place.type == "cuda":
        for network in (unet, vae):
            nn.Module.to(network, memory_format=torch.channels_last)
    schedule = NoiseSchedule.from_config(SCHEDULE)
    is_xl = model == "sdxl"
    return Stack(
        unet=unet,
        vae=vae,
        text_encoder=texts[0],
        tokenizer=tokenizer,
        schedule=schedule,
        image_size_px=image_size_px,
        fingerprint="random",
        device=place,
        dtype=precision,
        text_encoder_2=texts[1] if is_xl else None,
        tokenizer_2=tokenizer if is_xl else None,
        zeros_for_no_text=is_xl,
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _build_sd21(divisor: int, sample_size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=tuple(width // divisor for width in (320, 640, 1280, 1280)),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024 // divisor,
        use_linear_projection=True,
        norm_num_groups=32 if divisor == 1 else 16,
    )


def _build_sdxl(divisor: int, sample_size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=tuple(width // divisor for width in (320, 640, 1280)),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=(768 + 1280) // divisor,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 // divisor + 6 * 256,
        norm_num_groups=32 if divisor == 1 else 16,
    )


def _build_vae(divisor: int, image_size_px: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=tuple(width // divisor for width in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32 if divisor == 1 else 16,
        sample_size=image_size_px,
    )


def _build_texts(model: str, divisor: int, tokenizer: CLIPTokenizer) -> list[nn.Module]:
    """Text encoders by width, layers and heads; the second one projects."""
    shapes = [(1024, 23, 16)] if model == "sd21" else [(768, 12, 12), (1280, 32, 20)]
    texts: list[nn.Module] = []
    for number, (width, num_layers, num_heads) in enumerate(shapes):
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width // divisor,
            intermediate_size=4 * width // divisor,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads // divisor,
            projection_dim=width // divisor,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts.append(CLIPTextModelWithProjection(config) if number else CLIPTextModel(config))
    return texts
