"""Networks of Stable Diffusion's shapes with random weights, so that speed needs no download."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ezigen.diffusion import NoiseSchedule
from ezigen.models import Stack, resolve_folder
from ezigen.models.stack import choose_placement

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def build_stack(divisor: int, device: str, *, dtype: str = "fp32", image_size_px: int = 256) -> Stack:
    """Stable Diffusion 2.1-base with its channels divided; its own size is 512 px."""
    torch.manual_seed(0)
    place, precision = choose_placement(device, dtype)
    tokenizer = CLIPTokenizer.from_pretrained(resolve_folder("mini") / "tokenizer", local_files_only=True)
    text_width = 1024 // divisor
    unet = UNet2DConditionModel(
        sample_size=image_size_px // 8,
        block_out_channels=tuple(width // divisor for width in (320, 640, 1280, 1280)),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=text_width,
        use_linear_projection=True,
        norm_num_groups=32 if divisor == 1 else 16,
    )
    vae = AutoencoderKL(
        block_out_channels=tuple(width // divisor for width in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32 if divisor == 1 else 16,
        sample_size=image_size_px,
    )
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=23,
        num_attention_heads=16 // divisor,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    networks = (unet, vae, CLIPTextModel(text_config))
    for network in networks:
        nn.Module.to(network.requires_grad_(False).eval(), place, precision)
    if place.type == "cuda":
        for network in networks[:2]:
            nn.Module.to(network, memory_format=torch.channels_last)
    schedule = NoiseSchedule.from_config(SCHEDULE)
    return Stack(*networks, tokenizer, schedule, image_size_px, "random", place, precision)
