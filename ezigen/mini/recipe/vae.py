"""Phase 1: the autoencoder, trained on half-side crops of composed pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from ezigen.mini.recipe.config import RecipeConfig, VaeConfig
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import make_variants, select_products


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


def build_composer(config: RecipeConfig) -> Composer:
    """The composer of training products in every hue."""
    folder = config.world.pictures
    variants = make_variants(select_products(held_out=False, folder=folder), folder)
    return Composer(variants, config.world.side_px, config.world.num_backgrounds, config.seed)


def to_tensor(pixels: list[np.ndarray]) -> Tensor:
    """Pictures `h x w x 3` of bytes as one tensor `n x 3 x h x w` in [-1, 1]."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def random_crops(composer: Composer, rng: np.random.Generator, batch: int) -> Tensor:
    """`batch` half-side crops, two of each picture; every fourth call a quarter as many whole pictures instead."""
    side, half = composer.side, composer.side // 2
    if rng.random() < 0.2:
        return to_tensor([composer.sample(rng, 0.1).pixels for _ in range(batch // 4)])
    crops: list[np.ndarray] = []
    while len(crops) < batch:
        pixels = composer.sample(rng, 0.1).pixels
        for y, x in rng.integers(0, side - half + 1, (2, 2)):
            crops.append(pixels[y : y + half, x : x + half])
    return to_tensor(crops)


def edge_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of horizontal and vertical differences: keeps edges sharp."""
    return l1_loss(output.diff(dim=-1), target.diff(dim=-1)) + l1_loss(output.diff(dim=-2), target.diff(dim=-2))


def reconstruction_losses(vae: AutoencoderKL, composer: Composer, config: RecipeConfig, start: int) -> Iterator[Tensor]:
    """Endless training losses of the autoencoder."""
    rng = np.random.default_rng((config.seed, 1, start))
    dtype = getattr(torch, config.precision)
    while True:
        pixels = random_crops(composer, rng, config.vae.batch).to(config.device)
        with torch.autocast(config.device, dtype, enabled=dtype != torch.float32):
            posterior = vae.encode(pixels).latent_dist
            output = vae.decode(posterior.sample()).sample
        output = output.float()
        error = (
            4 * mse_loss(output, pixels) + l1_loss(output, pixels) + config.vae.edge_weight * edge_error(output, pixels)
        )
        yield error + config.vae.kl_weight * posterior.kl().mean()


def decoder_losses(vae: AutoencoderKL, composer: Composer, config: RecipeConfig, start: int) -> Iterator[Tensor]:
    """Endless training losses of the decoder alone, on codes with a little noise, as a denoiser leaves it."""
    rng = np.random.default_rng((config.seed, 9, start))
    dtype = getattr(torch, config.precision)
    while True:
        pixels = random_crops(composer, rng, config.vae.batch).to(config.device)
        with torch.autocast(config.device, dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                codes = vae.encode(pixels).latent_dist.mode()
            noise = torch.randn_like(codes) * config.vae.code_noise / vae.config.scaling_factor
            output = vae.decode(codes + noise * torch.rand((len(codes), 1, 1, 1), device=codes.device)).sample
        output = output.float()
        error = 2 * mse_loss(output, pixels) + l1_loss(output, pixels)
        yield error + config.vae.edge_weight * edge_error(output, pixels)


def polish_decoder(config: RecipeConfig) -> None:
    """Train the decoder further while the codes stay as they are: the denoiser need not know. Saves `work/vae`."""
    torch.manual_seed(config.seed)
    composer = build_composer(config)
    vae = AutoencoderKL.from_pretrained(config.work / "vae").to(config.device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    settings = config.vae
    trainer = Trainer("decoder", {"vae": vae}, settings.lr / 2, settings.polish_minutes, config.work, weight_decay=0.0)

    def check() -> None:
        print(f"decoder psnr {evaluate_vae(vae, composer, config.work / 'decoder.png'):.2f} dB", flush=True)

    trainer.run(decoder_losses(vae, composer, config, trainer.step), settings.batch, check)
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
    trainer = Trainer("vae", {"vae": vae}, config.vae.lr, config.vae.minutes, config.work, weight_decay=0.0)

    def check() -> None:
        print(f"vae psnr {evaluate_vae(vae, composer, config.work / 'vae.png'):.2f} dB", flush=True)

    trainer.run(reconstruction_losses(vae, composer, config, trainer.step), config.vae.batch, check)
    vae.register_to_config(scaling_factor=fit_scaling(vae, composer))
    vae.save_pretrained(config.work / "vae")
    return vae
