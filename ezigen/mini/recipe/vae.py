"""Phase 1: the autoencoder, trained on half-side crops of composed pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from ezigen.mini.recipe.config import RecipeConfig, VaeConfig
from ezigen.mini.recipe.pictures import build_composer, compose_pictures, random_crops, random_pictures, to_tensor
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.world.compose import Composer


def build_vae(config: VaeConfig, side_px: int) -> AutoencoderKL:
    """An untrained autoencoder with 4x downsampling and no attention (so crops and whole pictures behave alike)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=config.widths,
        latent_channels=config.latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=side_px,
        mid_block_add_attention=False,
    )


def edge_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of horizontal and vertical differences: keeps edges sharp."""
    return l1_loss(output.diff(dim=-1), target.diff(dim=-1)) + l1_loss(output.diff(dim=-2), target.diff(dim=-2))


Loss: TypeAlias = Callable[[AutoencoderKL, Tensor, RecipeConfig], Tensor]
"""Of an autoencoder on pictures `n x 3 x h x w` in [-1, 1]."""


def losses_on(vae: AutoencoderKL, loss: Loss, config: RecipeConfig, seed: int) -> Iterator[Tensor]:
    """Endless training losses, each on a batch of crops and a sixteenth as many whole pictures."""
    pictures, batch = compose_pictures(config), config.vae.batch
    torch.manual_seed(config.seed * 1_000_003 + seed)
    while True:
        crops, whole = random_crops(pictures, batch), random_pictures(pictures, max(1, batch // 16))
        yield 0.8 * loss(vae, crops, config) + 0.2 * loss(vae, whole, config)


def reconstruction_loss(vae: AutoencoderKL, pixels: Tensor, config: RecipeConfig) -> Tensor:
    """The error of pictures encoded, drawn and decoded, and the divergence of their codes."""
    with autocast(pixels, config.precision):
        posterior = vae.encode(pixels).latent_dist
        output = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.std)).sample
    output = output.float()
    error = 4 * mse_loss(output, pixels) + l1_loss(output, pixels) + config.vae.edge_weight * edge_error(output, pixels)
    loss: Tensor = error + config.vae.kl_weight * posterior.kl().mean()
    return loss


def decoder_loss(vae: AutoencoderKL, pixels: Tensor, config: RecipeConfig) -> Tensor:
    """The error of pictures decoded from their own codes with a little noise, as a denoiser leaves them."""
    with autocast(pixels, config.precision):
        with torch.no_grad():
            codes = vae.encode(pixels).latent_dist.mode()
        noise = torch.randn_like(codes) * config.vae.code_noise / vae.config.scaling_factor
        output = vae.decode(codes + noise * torch.rand((len(codes), 1, 1, 1), device=codes.device)).sample
    output = output.float()
    error = 2 * mse_loss(output, pixels) + l1_loss(output, pixels)
    return error + config.vae.edge_weight * edge_error(output, pixels)


def autocast(like: Tensor, precision: str) -> torch.autocast:
    """Forward passes in this precision. Without a cache of cast weights, which a recorded step could not refresh."""
    dtype = getattr(torch, precision)
    return torch.autocast(like.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)


def polish_decoder(config: RecipeConfig) -> None:
    """Train the decoder further while the codes stay as they are: the denoiser need not know. Saves `work/vae`."""
    torch.manual_seed(config.seed)
    composer = build_composer(config)
    vae = AutoencoderKL.from_pretrained(config.work / "vae").to(config.device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    settings = config.vae
    trainer = Trainer(
        "decoder",
        {"vae": vae},
        settings.lr / 2,
        settings.polish_minutes,
        config.work,
        settings.ema_decay,
        weight_decay=0.0,
        captures=True,
    )

    def check() -> None:
        print(f"decoder psnr {evaluate_vae(vae, composer, config.work / 'decoder.png'):.2f} dB", flush=True)

    trainer.run(losses_on(vae, decoder_loss, config, 99 + trainer.step), settings.batch, check)
    vae.load_state_dict(trainer.averaged_modules()["vae"])
    check()
    vae.save_pretrained(config.work / "vae")


@torch.no_grad()
def evaluate_vae(vae: AutoencoderKL, composer: Composer, path: Path) -> float:
    """PSNR in dB over 64 pictures; writes a sheet of originals above reconstructions."""
    rng = np.random.default_rng(99)
    pixels = to_tensor([composer.sample(rng).pixels for _ in range(64)])
    latents = vae.encode(pixels.to(vae.device)).latent_dist.mode()
    output = vae.decode(latents).sample.clamp(-1, 1).cpu()
    rows = [torch.cat(list(part[:12]), dim=2) for part in (pixels, output)]
    sheet = torch.cat(rows, dim=1).add(1).mul(127.5).byte().permute(1, 2, 0).numpy()
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST).save(path)
    return float(10 * torch.log10(4 / mse_loss(output, pixels)))


@torch.no_grad()
def fit_scaling(vae: AutoencoderKL, composer: Composer) -> float:
    """The factor that gives latents unit standard deviation, over 256 pictures."""
    rng = np.random.default_rng(98)
    pixels = to_tensor([composer.sample(rng, 0.1).pixels for _ in range(256)])
    return float(1 / vae.encode(pixels.to(vae.device)).latent_dist.mode().std())


def train_vae(config: RecipeConfig) -> AutoencoderKL:
    """Train (or finish training) the autoencoder and save it as a diffusers folder `work/vae`."""
    torch.manual_seed(config.seed)
    composer = build_composer(config)
    vae = build_vae(config.vae, config.world.side_px).to(config.device)
    trainer = Trainer(
        "vae",
        {"vae": vae},
        config.vae.lr,
        config.vae.minutes,
        config.work,
        config.vae.ema_decay,
        weight_decay=0.0,
        captures=True,
    )

    def check() -> None:
        print(f"vae psnr {evaluate_vae(vae, composer, config.work / 'vae.png'):.2f} dB", flush=True)

    trainer.run(losses_on(vae, reconstruction_loss, config, 11 + trainer.step), config.vae.batch, check)
    vae.load_state_dict(trainer.averaged_modules()["vae"])
    vae.register_to_config(scaling_factor=fit_scaling(vae, composer))
    vae.save_pretrained(config.work / "vae")
    return vae
