"""Phase 4: the subject adapters, trained on pairs with the denoiser and the text encoder frozen (paper 4.1).

A pair is a product alone on white (the subject) and the same product in the same hue in a scene, in another pose (the
target). Targets are the samples encoded for the denoiser; subjects are a few views of every variant, whose features
at timestep 1 are computed once and kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ezigen.adapters import AdapterCard, AdapterSet, attach_adapters, save_adapter
from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.latents import LatentStore, encode
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.recipe.unet import TextToImage, build_schedule, decode, write_sheet
from ezigen.mini.recipe.vae import build_composer, to_tensor
from ezigen.mini.world.captions import describe, random_caption
from ezigen.mini.world.compose import Composer, draw_pose
from ezigen.mini.world.products import Variant, make_variant, select_products
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.subject import SubjectFeatures, record_norms

NUM_VIEWS = 4
T_SUB = 1
CHUNK = 64


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


@torch.no_grad()
def encode_subjects(parts: TextToImage, latents: Tensor, classes: list[str]) -> SubjectFeatures:
    """Features of subject latents `n x c x h x w` at timestep 1 under each one's own caption."""
    text = parts.embed([describe(name, None) for name in classes])
    times = torch.full((len(latents),), T_SUB, device=latents.device)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents.device)
    noisy = parts.schedule.add_noise(latents, noise, times)
    with (
        torch.autocast(latents.device.type, parts.autocast, enabled=parts.autocast != torch.float32),
        record_norms(parts.unet) as tokens,
    ):
        parts.unet(noisy, times, text)
    return SubjectFeatures(tokens)


@dataclass
class SubjectStore:
    """Features of `NUM_VIEWS` views of every variant, every other one mirrored.

    tokens: block name -> `variants x views x tokens x channels` in bf16.
    """

    tokens: dict[str, Tensor]

    def draw(self, variants: Tensor, mirrored: Tensor, rng: np.random.Generator) -> SubjectFeatures:
        """A random view of each of `variants` (n,), mirrored or not as asked (n,)."""
        views = 2 * torch.from_numpy(rng.integers(0, NUM_VIEWS // 2, len(variants))) + mirrored.long()
        return SubjectFeatures({name: tokens[variants.long(), views].float() for name, tokens in self.tokens.items()})


def build_subject_store(
    parts: TextToImage, vae: AutoencoderKL, composer: Composer, config: RecipeConfig
) -> SubjectStore:
    """Compose, encode and featurise `NUM_VIEWS` views of every variant."""
    rng = np.random.default_rng((config.seed, 4))
    chunks: dict[str, list[Tensor]] = {}
    repeated = [(variant, view % 2 == 1) for variant in composer.variants for view in range(NUM_VIEWS)]
    for start in range(0, len(repeated), CHUNK):
        chosen = repeated[start : start + CHUNK]
        pixels = to_tensor([subject_pixels(composer, rng, variant, mirrored) for variant, mirrored in chosen]).to(
            config.device
        )
        latents = encode(vae, pixels, config.precision)
        features = encode_subjects(parts, latents, [v.product.subject_class for v, _ in chosen])
        for name, tokens in features.tokens.items():
            chunks.setdefault(name, []).append(tokens.bfloat16().cpu())
    joined = {name: torch.cat(parts_) for name, parts_ in chunks.items()}
    return SubjectStore({name: t.reshape(-1, NUM_VIEWS, *t.shape[1:]) for name, t in joined.items()})


def draw_captions(rng: np.random.Generator, variants: list[Variant], scenes: list[int], dropout: float) -> list[str]:
    """One caption per sample, empty with probability `dropout`."""
    captions = []
    for v, scene in zip(variants, scenes, strict=True):
        name = SCENE_NAMES[scene] if scene >= 0 else None
        caption = random_caption(rng, v.product.name, v.product.subject_class, v.hue_word, name)
        captions.append("" if rng.random() < dropout else caption)
    return captions


def draw_times(rng: np.random.Generator, batch: int, share: float, favoured: tuple[int, int] = (0, 600)) -> Tensor:
    """Timesteps (batch,), a share of them in the favoured range and the rest anywhere, both spread evenly."""
    num_favoured = round(batch * share)
    ranges = ((num_favoured, *favoured), (batch - num_favoured, 0, 1000))
    parts = [low + (np.arange(n) + rng.random()) * ((high - low) / max(n, 1)) for n, low, high in ranges]
    return torch.from_numpy(np.concatenate(parts)).long()


def pair_losses(
    parts: TextToImage,
    adapters: AdapterSet,
    subjects: SubjectStore,
    variants: list[Variant],
    config: RecipeConfig,
    start: int,
) -> Iterator[Tensor]:
    """Endless adapter losses: the denoiser's own error on the target, given the subject's features (for most samples).

    Errors on the product weigh more than those around it, where the subject has nothing to say.
    """
    store = LatentStore(config.work / "latents")
    settings = config.adapter
    rng = np.random.default_rng((config.seed, 7, start))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + 77 + start)
    while True:
        picked = torch.from_numpy(rng.integers(0, len(store), settings.batch))
        clean, numbers = store.latents[picked].float(), store.variants[picked]
        captions = draw_captions(rng, [variants[i] for i in numbers.tolist()], store.scenes[picked].tolist(), 0.05)
        noise = torch.randn(clean.shape, generator=generator)
        times = draw_times(rng, settings.batch, settings.low_share)
        noisy = parts.schedule.add_noise(clean, noise, times).to(config.device)
        target = parts.schedule.get_velocity(clean, noise, times).to(config.device)
        mirrored = store.mirrored[picked] ^ torch.from_numpy(rng.random(settings.batch) >= settings.same_side)
        kept = torch.from_numpy(rng.random(settings.batch) >= settings.subject_dropout)
        features = subjects.draw(numbers, mirrored, rng).to(config.device).keep(kept)
        weight = 1 + settings.product_weight * store.masks[picked].float()[:, None].to(config.device) / 255
        output = predict_with_subjects(parts, adapters, features, noisy, times.to(config.device), captions)
        yield ((output - target).square() * weight).mean() / weight.mean()


def predict_with_subjects(
    parts: TextToImage,
    adapters: AdapterSet,
    features: SubjectFeatures,
    noisy: Tensor,
    times: Tensor,
    captions: list[str],
) -> Tensor:
    """The denoiser's prediction with active adapters; gradients reach the adapters alone."""
    with torch.no_grad():
        text = parts.embed(captions)
    with adapters.active(features):
        return parts.denoise(noisy, times, text)


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
        features = encode_subjects(parts, latents, classes)
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
    subjects = build_subject_store(parts, vae, composer, config)
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
    )
    passed = [trainer.seconds]

    def check() -> None:
        write_adapter(adapters, trainer, settings.batch, config)
        if trainer.seconds - passed[0] > 60 * snapshot_minutes or trainer.share() >= 1:
            passed[0] = trainer.seconds
            write_subject_sheet(
                parts, adapters, vae, composer, config, config.work / f"adapters-{trainer.step:06d}.png"
            )

    trainer.run(pair_losses(parts, adapters, subjects, composer.variants, config, trainer.step), settings.batch, check)
