"""Phase 3: the denoiser and the text encoder, trained together on encoded samples.

The schedule is Stable Diffusion's (scaled-linear, 1000 steps); the network predicts v, whose target has unit scale at
every noise level, so that a small network with few steps does not have to learn to subtract at high noise (an epsilon
error is amplified there by 1 / sqrt(abar)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.latents import LatentStore, token_ids
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.recipe.tokenizer import MAX_TOKENS, build_tokenizer
from ezigen.mini.world.captions import vocabulary_words


def build_unet(config: RecipeConfig) -> UNet2DConditionModel:
    """An untrained denoiser for latents of a quarter of the picture's side; attention everywhere but in the first,
    finest down block.
    """
    widths, levels = config.unet.widths, len(config.unet.widths)
    return UNet2DConditionModel(
        sample_size=config.world.side_px // 4,
        in_channels=config.vae.latent_channels,
        out_channels=config.vae.latent_channels,
        block_out_channels=widths,
        layers_per_block=config.unet.layers_per_block,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=config.unet.text_dim,
        attention_head_dim=tuple(max(1, width // config.unet.head_dim) for width in widths),
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_text_encoder(config: RecipeConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder over the world's vocabulary."""
    width = config.unet.text_dim
    settings = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=config.unet.text_layers,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(settings)


def build_schedule() -> DDPMScheduler:
    """Stable Diffusion's noise schedule with v prediction and leading spacing."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=1,
    )


@dataclass
class TextToImage:
    """The trained-together parts with their fixed companions."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    schedule: DDPMScheduler
    autocast: torch.dtype

    def embed(self, captions: list[str]) -> Tensor:
        """Text tokens `n x MAX_TOKENS x width`."""
        return self.embed_ids(token_ids(self.tokenizer, captions).long().to(self.unet.device))

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Text tokens `n x MAX_TOKENS x width` of token ids `n x MAX_TOKENS`."""
        tokens: Tensor = self.text_encoder(ids).last_hidden_state
        return tokens

    def denoise(self, noisy: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """The network's v prediction, fp32."""
        enabled = self.autocast != torch.float32
        with torch.autocast(noisy.device.type, self.autocast, enabled=enabled, cache_enabled=False):
            output: Tensor = self.unet(noisy, times, text).sample.float()
        return output


def build_text_to_image(config: RecipeConfig) -> TextToImage:
    """Everything untrained, on the configured device."""
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(vocabulary_words(), config.work / "tokenizer")
    unet = build_unet(config).to(config.device)
    text = build_text_encoder(config, tokenizer).to(config.device)  # type: ignore[arg-type]
    return TextToImage(unet, text, tokenizer, build_schedule(), getattr(torch, config.precision))


def spread_times(count: int, low: int, high: int, device: str) -> Tensor:
    """Timesteps (count,) in [low, high), spread evenly from a random start, in rising order."""
    steps = torch.arange(count, device=device) + torch.rand((), device=device)
    return (low + steps * ((high - low) / max(count, 1))).long()


def diffusion_losses(parts: TextToImage, store: LatentStore, config: RecipeConfig, start: int) -> Iterator[Tensor]:
    """Endless training losses: mean squared error of v at uniform times, captions dropped for guidance."""
    torch.manual_seed(config.seed * 1_000_003 + start)
    while True:
        picked = store.draw(config.unet.batch)
        text = parts.embed_ids(store.draw_captions(picked, config.unet.caption_dropout))
        clean = store.latents[picked].float()
        noise = torch.randn_like(clean)
        times = spread_times(len(clean), 0, 1000, config.device)
        noisy = parts.schedule.add_noise(clean, noise, times)
        yield mse_loss(parts.denoise(noisy, times, text), parts.schedule.get_velocity(clean, noise, times))


@torch.no_grad()
def sample_latents(
    parts: TextToImage, captions: list[str], steps: int = 25, guidance: float = 4.0, seed: int = 0
) -> Tensor:
    """Latents for `captions` by DDIM with guidance; the noise depends on `seed` alone."""
    scheduler = DDIMScheduler.from_config(parts.schedule.config)
    scheduler.set_timesteps(steps)
    shape = (len(captions), parts.unet.config.in_channels, parts.unet.config.sample_size, parts.unet.config.sample_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(parts.unet.device)
    text = parts.embed([""] * len(captions) + captions)
    for time in scheduler.timesteps:
        both = torch.cat([latents, latents])
        without, with_text = parts.denoise(both, time.expand(len(both)).to(both.device), text).chunk(2)
        latents = scheduler.step(without + guidance * (with_text - without), time, latents).prev_sample
    return latents


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Pictures `n x h x w x 3` of bytes."""
    pixels = vae.decode(latents / vae.config.scaling_factor).sample
    picture: np.ndarray = pixels.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return picture


def write_sheet(pictures: np.ndarray, columns: int, path: Path, zoom: int = 2) -> None:
    """Pictures `n x h x w x 3` as one sheet, row by row."""
    side = pictures.shape[1]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + 2), rows * (side + 2)), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (i % columns * (side + 2), i // columns * (side + 2)))
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(path)


SHEET_CAPTIONS = [
    *(f"a photo of a {subject} {place}" for subject in ("red fruit", "blue car", "dog", "green bird") for place in (
        "on a beach", "in the snow", "on green grass", "in the night sky", "in front of a brick wall",
        "on a wooden table", "in the sea", "in the desert", "in a forest", "in a studio")),
]  # fmt: skip


def load_weights(parts: TextToImage, weights: dict[str, dict[str, Tensor]]) -> None:
    """Put the averaged weights into the modules."""
    parts.unet.load_state_dict(weights["unet"])
    parts.text_encoder.load_state_dict(weights["text_encoder"])


def write_snapshot(parts: TextToImage, trainer: Trainer, vae: AutoencoderKL, folder: Path) -> None:
    """Save the averaged weights under `folder` and a sample sheet beside them; training goes on with the current
    ones.
    """
    current = {key: {n: p.clone() for n, p in m.state_dict().items()} for key, m in trainer.modules.items()}
    load_weights(parts, trainer.averaged_modules())
    parts.unet.save_pretrained(folder / "unet")
    parts.text_encoder.save_pretrained(folder / "text_encoder")
    parts.schedule.save_pretrained(folder / "scheduler")
    parts.tokenizer.save_pretrained(folder / "tokenizer")
    latents = sample_latents(parts, SHEET_CAPTIONS)
    write_sheet(decode(vae, latents), 10, folder / f"samples-{trainer.step:06d}.png")
    load_weights(parts, current)


def train_unet(config: RecipeConfig, snapshot_minutes: float = 8) -> None:
    """Train (or finish training) denoiser and text encoder; snapshots under `work/text_to_image`."""
    parts = build_text_to_image(config)
    vae = AutoencoderKL.from_pretrained(config.work / "vae").to(config.device).eval()
    store = LatentStore(config.work / "latents", config.device)
    modules = {"unet": parts.unet, "text_encoder": parts.text_encoder}
    trainer = Trainer(
        "unet",
        modules,
        config.unet.lr,
        config.unet.minutes,
        config.work,
        config.unet.ema_decay,
        use_muon=config.unet.use_muon,
        captures=True,
    )
    passed = [trainer.seconds]

    def check() -> None:
        if not trainer.captures:  # a recorded step keeps reading what it was recorded with
            store.refresh()
        if trainer.seconds - passed[0] > 60 * snapshot_minutes or trainer.share() >= 1:
            passed[0] = trainer.seconds
            write_snapshot(parts, trainer, vae, config.work / "text_to_image")

    trainer.run(diffusion_losses(parts, store, config, trainer.step), config.unet.batch, check)
