"""Phase 4b: denoiser and adapters together, on the adapters' pairs.

The denoiser of a small budget draws coloured shapes rather than things, and adapters alone cannot make it draw better.
Here it learns to render what the subject shows, while a share of the samples keeps the adapters idle and so keeps it a
text-to-image model. Afterwards it is frozen again; whatever loads it sees a plain denoiser.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from ezigen.adapters import AdapterSet, attach_adapters, load_adapter
from ezigen.mini.recipe.adapters import (
    NUM_VIEWS,
    draw_captions,
    draw_times,
    encode_subjects,
    load_text_to_image,
    subject_pixels,
    write_adapter,
    write_subject_sheet,
)
from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.latents import LatentStore, encode
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.recipe.unet import TextToImage
from ezigen.mini.recipe.vae import build_composer, to_tensor
from ezigen.mini.world.compose import Composer
from ezigen.models.blocks import STOCK

CHUNK = 64


def encode_views(vae: AutoencoderKL, composer: Composer, config: RecipeConfig) -> Tensor:
    """Latents of `NUM_VIEWS` views of every variant, every other one mirrored: `variants x views x c x h x w`, fp16."""
    rng = np.random.default_rng((config.seed, 4))
    repeated = [(variant, view % 2 == 1) for variant in composer.variants for view in range(NUM_VIEWS)]
    latents = []
    for start in range(0, len(repeated), CHUNK):
        chosen = repeated[start : start + CHUNK]
        pixels = to_tensor([subject_pixels(composer, rng, variant, mirrored) for variant, mirrored in chosen])
        latents.append(encode(vae, pixels.to(config.device), config.precision).half().cpu())
    joined = torch.cat(latents)
    return joined.reshape(-1, NUM_VIEWS, *joined.shape[1:])


def joint_losses(
    parts: TextToImage, adapters: AdapterSet, views: Tensor, composer: Composer, config: RecipeConfig, start: int
) -> Iterator[Tensor]:
    """Endless losses with gradients in denoiser and adapters; `joint_idle` of the samples see stock blocks."""
    store, settings = LatentStore(config.work / "latents"), config.adapter
    rng = np.random.default_rng((config.seed, 10, start))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + 177 + start)
    while True:
        picked = torch.from_numpy(rng.integers(0, len(store), settings.batch))
        clean, numbers = store.latents[picked].float(), store.variants[picked].long()
        variants = [composer.variants[i] for i in numbers.tolist()]
        noise = torch.randn(clean.shape, generator=generator)
        times = draw_times(rng, settings.batch, settings.low_share)
        noisy = parts.schedule.add_noise(clean, noise, times).to(config.device)
        target = parts.schedule.get_velocity(clean, noise, times).to(config.device)
        mirrored = store.mirrored[picked] ^ torch.from_numpy(rng.random(settings.batch) >= settings.same_side)
        chosen = 2 * torch.from_numpy(rng.integers(0, NUM_VIEWS // 2, settings.batch)) + mirrored.long()
        subjects = views[numbers, chosen].float().to(config.device)
        features = encode_subjects(parts, subjects, [v.product.subject_class for v in variants])
        gate = torch.from_numpy(rng.random(settings.batch) >= settings.joint_idle).float().to(config.device)
        with torch.no_grad():
            text = parts.embed(draw_captions(rng, variants, store.scenes[picked].tolist(), 0.1))
        with adapters.active(features, gate):
            output = parts.denoise(noisy, times.to(config.device), text)
        weight = 1 + settings.product_weight * store.masks[picked].float()[:, None].to(config.device) / 255
        yield ((output - target).square() * weight).mean() / weight.mean()


def save_denoiser(weights: dict[str, Tensor], template: UNet2DConditionModel, config: RecipeConfig) -> None:
    """Save the averaged denoiser without a trace of the wrapped blocks as `work/text_to_image/unet`."""
    plain = UNet2DConditionModel.from_config(template.config)
    plain.load_state_dict({name.replace(f".{STOCK}.", "."): value for name, value in weights.items()})
    plain.save_pretrained(config.work / "text_to_image" / "unet")


def train_jointly(config: RecipeConfig, snapshot_minutes: float = 6) -> None:
    """Train (or finish training) denoiser and adapters together; saves both in `work`."""
    torch.manual_seed(config.seed)
    parts = load_text_to_image(config, config.work / "text_to_image")
    vae = AutoencoderKL.from_pretrained(config.work / "vae").to(config.device).eval()
    composer = build_composer(config)
    adapters = attach_adapters(parts.unet)
    load_adapter(adapters, config.work / "adapter", base_fingerprint="")
    parts.unet.requires_grad_(True)
    settings = config.adapter
    modules = {"unet": parts.unet, "adapters": adapters}
    trainer = Trainer("joint", modules, settings.lr / 2, settings.joint_minutes, config.work, 0.995, use_muon=True)
    views, passed = encode_views(vae, composer, config), [trainer.seconds]

    def check() -> None:
        if trainer.seconds - passed[0] > 60 * snapshot_minutes or trainer.share() >= 1:
            passed[0] = trainer.seconds
            save_denoiser(trainer.averaged_modules()["unet"], parts.unet, config)
            write_adapter(adapters, trainer, config, "")
            sheet = config.work / f"joint-{trainer.step:06d}.png"
            write_subject_sheet(parts, adapters, vae, composer, config, sheet)

    trainer.run(joint_losses(parts, adapters, views, composer, config, trainer.step), settings.batch, check)
