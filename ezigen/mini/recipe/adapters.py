"""Phase 4: the subject adapters, trained on pairs with the denoiser and the text encoder frozen (paper 4.1).

A pair is a product alone on white (the subject) and the same product in the same hue in a scene, in another pose (the
target). Targets are the samples encoded for the denoiser; subjects are a few views of every variant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ezigen.adapters import AdapterCard, AdapterSet, attach_adapters, save_adapter
from ezigen.diffusion import NoiseSource
from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.latents import LatentStore, encode, encode_all, token_ids
from ezigen.mini.recipe.pictures import build_composer, to_tensor
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.recipe.unet import TextToImage, build_schedule, decode, spread_times, write_sheet
from ezigen.mini.recipe.workers import spread
from ezigen.mini.world.captions import describe
from ezigen.mini.world.compose import Composer, draw_pose
from ezigen.mini.world.products import Variant, make_variant, select_products
from ezigen.subject import SubjectFeatures, record_norms

NUM_VIEWS = 4
T_SUB = 1
LATE = (0, 600)
"""Timesteps at which loops run."""


def load_text_to_image(config: RecipeConfig, folder: Path) -> TextToImage:
    """The trained denoiser and text encoder of `folder`, frozen."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").to(config.device).eval().requires_grad_(False)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    text = text.to(config.device).eval().requires_grad_(False)  # type: ignore[arg-type]
    tokenizer = CLIPTokenizer.from_pretrained(config.work / "tokenizer")
    return TextToImage(unet, text, tokenizer, build_schedule(), getattr(torch, config.precision))


def subject_pixels(composer: Composer, rng: np.random.Generator, variant: Variant, mirrored: bool) -> np.ndarray:
    """The variant alone on white in a random pose."""
    return composer.compose(rng, variant, None, replace(draw_pose(rng, None), mirrored=mirrored))[0]


@cache
def subject_noise(shape: tuple[int, ...], device: str) -> Tensor:
    """The noise of every subject's latent (1, c, h, w): that of the subject encoder, which knows no seeds."""
    return NoiseSource().noise(0, "subject", 0, 0, shape)[None].to(device)


@torch.no_grad()
def encode_subjects(parts: TextToImage, latents: Tensor, text: Tensor) -> SubjectFeatures:
    """Features of subject latents `n x c x h x w` at timestep 1, under text tokens `n x MAX_TOKENS x width`."""
    times = torch.full((len(latents),), T_SUB, device=latents.device)
    noise = subject_noise(tuple(latents.shape[1:]), latents.device.type).expand_as(latents)
    noisy = parts.schedule.add_noise(latents, noise, times)
    enabled = parts.autocast != torch.float32
    with (
        torch.autocast(latents.device.type, parts.autocast, enabled=enabled, cache_enabled=False),
        record_norms(parts.unet) as tokens,
    ):
        parts.unet(noisy, times, text)
    return SubjectFeatures(tokens)


@dataclass
class SubjectViews:
    """`NUM_VIEWS` views of every variant alone on white, every other one mirrored, on the configured device.

    latents: variants x views x c x h x w in fp16. captions: token ids of each variant's own caption (variants x
    MAX_TOKENS).
    """

    latents: Tensor
    captions: Tensor

    def draw(self, variants: Tensor, mirrored: Tensor) -> Tensor:
        """A random view of each of `variants` (n,), mirrored or not as asked (n,): n x c x h x w in fp32."""
        views = 2 * torch.randint(0, NUM_VIEWS // 2, (len(variants),), device=variants.device) + mirrored.long()
        return self.latents[variants.long(), views].float()


def make_views(parts: TextToImage, vae: AutoencoderKL, config: RecipeConfig) -> SubjectViews:
    """Compose and encode the views of every variant."""
    composer = build_composer(config)

    def compose(number: int) -> np.ndarray:
        rng = np.random.default_rng((config.seed, 4, number))
        variant = composer.variants[number]
        return np.stack([subject_pixels(composer, rng, variant, view % 2 == 1) for view in range(NUM_VIEWS)])

    pixels = np.concatenate(list(spread(compose, range(len(composer.variants)), config.processes)))
    latents = encode_all(vae, torch.from_numpy(pixels), config).to(config.device)
    latents = latents.reshape(-1, NUM_VIEWS, *latents.shape[1:])
    captions = token_ids(parts.tokenizer, [describe(v.product.subject_class, None) for v in composer.variants])
    return SubjectViews(latents, captions.long().to(config.device))


def draw_times(batch: int, share: float, favoured: tuple[int, int], device: str) -> Tensor:
    """Timesteps (batch,) in random order, a share of them in the favoured range and the rest anywhere, both spread
    evenly.
    """
    num_favoured = round(batch * share)
    times = [spread_times(num_favoured, *favoured, device), spread_times(batch - num_favoured, 0, 1000, device)]
    return torch.cat(times)[torch.rand(batch, device=device).argsort()]


def pair_losses(
    parts: TextToImage, adapters: AdapterSet, views: SubjectViews, store: LatentStore, config: RecipeConfig, start: int
) -> Iterator[Tensor]:
    """Endless adapter losses: the denoiser's own error on the target, given the subject's features (for most samples).

    Errors on the product weigh more than those around it, where the subject has nothing to say.
    """
    settings, device = config.adapter, config.device
    torch.manual_seed(config.seed * 1_000_003 + 77 + start)
    while True:
        picked = store.draw(settings.batch)
        clean, numbers = store.latents[picked].float(), store.variants[picked].long()
        noise = torch.randn_like(clean)
        times = draw_times(settings.batch, settings.low_share, LATE, device)
        noisy = parts.schedule.add_noise(clean, noise, times)
        target = parts.schedule.get_velocity(clean, noise, times)
        mirrored = store.mirrored[picked] ^ (torch.rand(settings.batch, device=device) >= settings.same_side)
        kept = torch.rand(settings.batch, device=device) >= settings.subject_dropout
        with torch.no_grad():
            own_text = parts.embed_ids(views.captions[numbers])
            text = parts.embed_ids(store.draw_captions(picked, 0.05))
        features = encode_subjects(parts, views.draw(numbers, mirrored), own_text).keep(kept)
        weight = 1 + settings.product_weight * store.masks[picked].float()[:, None] / 255
        with adapters.active(features):
            output = parts.denoise(noisy, times, text)
        yield ((output - target).square() * weight).mean() / weight.mean()


@torch.no_grad()
def sample_with_subjects(
    parts: TextToImage,
    adapters: AdapterSet,
    features: SubjectFeatures,
    captions: list[str],
    first_share: float = 1.0,
    steps: int = 20,
    guidance: float = 3.0,
) -> Tensor:
    """Latents by DDIM with guidance; the subject takes part in the last `first_share` of the steps."""
    scheduler = DDIMScheduler.from_config(parts.schedule.config)
    scheduler.set_timesteps(steps)
    side = parts.unet.config.sample_size
    latents = torch.randn(
        (len(captions), parts.unet.config.in_channels, side, side), generator=torch.Generator().manual_seed(1)
    )
    latents, text = latents.to(parts.unet.device), parts.embed([""] * len(captions) + captions)
    for number, time in enumerate(scheduler.timesteps):
        both, times = torch.cat([latents, latents]), time.expand(2 * len(latents)).to(latents.device)
        if number >= round(steps * (1 - first_share)):
            with adapters.active(features):
                output = parts.denoise(both, times, text)
        else:
            output = parts.denoise(both, times, text)
        without, with_text = output.chunk(2)
        latents = scheduler.step(without + guidance * (with_text - without), time, latents).prev_sample
    return latents


SHEET_PRODUCTS = ("pineapple", "penguin", "car", "butterfly", "hamburger", "guitar", "robot", "wrapped gift")
SHEET_SCENES = ("beach", "snow", "grass", "night", "bricks", "table")


def write_subject_sheet(
    parts: TextToImage, adapters: AdapterSet, vae: AutoencoderKL, composer: Composer, config: RecipeConfig, path: Path
) -> None:
    """Held-out products (one per row) in scenes, every step with the subject; the subject itself first."""
    folder = config.world.pictures
    products = {p.name: p for p in select_products(held_out=True, folder=folder)}
    variants = [make_variant(products[name], 0, folder) for name in SHEET_PRODUCTS]
    rng = np.random.default_rng(5)
    pixels = [subject_pixels(composer, rng, variant, mirrored=False) for variant in variants]
    latents = encode(vae, to_tensor(pixels).to(config.device), config.precision)
    classes = [v.product.subject_class for v in variants]
    columns = [np.stack(pixels)]
    for scene in SHEET_SCENES:
        features = encode_subjects(parts, latents, parts.embed([describe(name, None) for name in classes]))
        captions = [describe(name, scene) for name in classes]
        columns.append(decode(vae, sample_with_subjects(parts, adapters, features, captions)))
    write_sheet(np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:]), len(columns), path)


def write_adapter(adapters: AdapterSet, trainer: Trainer, batch: int, config: RecipeConfig) -> None:
    """Save the averaged adapters with their card as `work/adapter`; the base's fingerprint is filled in when it is
    packaged.
    """
    facts: dict[str, str | int | float | bool] = {
        "data": "miniature world",
        "phase": trainer.name,
        "steps": trainer.step,
        "samples": trainer.step * batch,
        "optimizer": "muon",
        "lr": trainer.lr,
        "batch": batch,
        "date": datetime.now(UTC).date().isoformat(),
    }
    current = {n: p.clone() for n, p in adapters.state_dict().items()}
    adapters.load_state_dict(trainer.averaged_modules()["adapters"])
    card = AdapterCard(base_model="mini", base_fingerprint="", training=facts)
    save_adapter(adapters, config.work / "adapter", card)
    adapters.load_state_dict(current)


def train_adapters(config: RecipeConfig, snapshot_minutes: float = 6) -> None:
    """Train (or finish training) the adapters on `work/text_to_image`; saves `work/adapter` and sample sheets."""
    torch.manual_seed(config.seed)
    parts = load_text_to_image(config, config.work / "text_to_image")
    vae = AutoencoderKL.from_pretrained(config.work / "vae").to(config.device).eval()
    composer = build_composer(config)
    adapters = attach_adapters(parts.unet)
    views = make_views(parts, vae, config)
    print(json.dumps({"adapters": len(adapters), "numbers": adapters.num_parameters}), flush=True)
    settings = config.adapter
    trainer = Trainer(
        "adapters",
        {"adapters": adapters},
        settings.lr,
        settings.minutes,
        config.work,
        0.995,
        weight_decay=0.0,
        use_muon=True,
        captures=True,
    )
    passed = [trainer.seconds]

    def check() -> None:
        write_adapter(adapters, trainer, settings.batch, config)
        if trainer.seconds - passed[0] > 60 * snapshot_minutes or trainer.share() >= 1:
            passed[0] = trainer.seconds
            write_subject_sheet(
                parts, adapters, vae, composer, config, config.work / f"adapters-{trainer.step:06d}.png"
            )

    store = LatentStore(config.work / "latents", config.device)
    trainer.run(pair_losses(parts, adapters, views, store, config, trainer.step), settings.batch, check)
