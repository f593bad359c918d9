"""Phase 4b: denoiser and adapters together, on the adapters' pairs.

The denoiser of a small budget draws coloured shapes rather than things, and adapters alone cannot make it draw better.
Here it learns to render what the subject shows, while a share of the samples keeps the adapters idle and so keeps it a
text-to-image model. Afterwards it is frozen again; whatever loads it sees a plain denoiser.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from ezigen.adapters import AdapterSet, attach_adapters, load_adapter
from ezigen.mini.recipe.adapters import (
    SubjectViews,
    draw_times,
    encode_subjects,
    load_text_to_image,
    make_views,
    write_adapter,
    write_subject_sheet,
)
from ezigen.mini.recipe.config import JointConfig, RecipeConfig
from ezigen.mini.recipe.latents import LatentStore
from ezigen.mini.recipe.pictures import build_composer
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.recipe.unet import TextToImage
from ezigen.models.blocks import STOCK

NOISY = (300, 1000)


def draw_batch(store: LatentStore, settings: JointConfig) -> Tensor:
    """Numbers of a step's samples (settings.batch,): the first target of every subject, the second ones in the same
    order, then those with idle adapters.
    """
    first = store.draw(settings.num_subjects)
    return torch.cat([first, store.draw_companions(first), store.draw(settings.num_idle)])


def joint_losses(
    parts: TextToImage, adapters: AdapterSet, views: SubjectViews, store: LatentStore, config: RecipeConfig, start: int
) -> Iterator[Tensor]:
    """Endless losses with gradients in denoiser and adapters; the subjects' features are those of the denoiser
    as it is at that step, without gradients.
    """
    settings, device = config.joint, config.device
    torch.manual_seed(config.seed * 1_000_003 + 177 + start)
    n, num_active = settings.num_subjects, 2 * settings.num_subjects
    while True:
        picked = draw_batch(store, settings)
        clean, numbers = store.latents[picked].float(), store.variants[picked[:n]].long()
        noise = torch.randn_like(clean)
        times = draw_times(settings.batch, settings.noisy_share, NOISY, device)
        noisy = parts.schedule.add_noise(clean, noise, times)
        target = parts.schedule.get_velocity(clean, noise, times)
        mirrored = store.mirrored[picked[:n]] ^ (torch.rand(n, device=device) >= settings.same_side)
        with torch.no_grad():
            own_text = parts.embed_ids(views.captions[numbers])
            text = parts.embed_ids(store.draw_captions(picked, 0.1))
        features = encode_subjects(parts, views.draw(numbers, mirrored), own_text)
        with adapters.active(features):
            outputs = [parts.denoise(noisy[:num_active], times[:num_active], text[:num_active])]
        if settings.num_idle:
            outputs.append(parts.denoise(noisy[num_active:], times[num_active:], text[num_active:]))
        weight = 1 + settings.product_weight * store.masks[picked].float()[:, None] / 255
        yield ((torch.cat(outputs) - target).square() * weight).mean() / weight.mean()


def save_denoiser(weights: dict[str, Tensor], template: UNet2DConditionModel, config: RecipeConfig) -> None:
    """Save the averaged denoiser without a trace of the wrapped blocks as `work/text_to_image/unet`."""
    plain = UNet2DConditionModel.from_config(template.config)
    plain.load_state_dict({name.replace(f".{STOCK}.", "."): value for name, value in weights.items()})
    plain.save_pretrained(config.work / "text_to_image" / "unet")


def train_jointly(config: RecipeConfig, snapshot_minutes: float = 30) -> None:
    """Train (or finish training) denoiser and adapters together; saves both in `work`."""
    torch.manual_seed(config.seed)
    parts = load_text_to_image(config, config.work / "text_to_image")
    vae = AutoencoderKL.from_pretrained(config.work / "vae").to(config.device).eval()
    composer = build_composer(config)
    adapters = attach_adapters(parts.unet)
    load_adapter(adapters, config.work / "adapter", base_fingerprint="")
    parts.unet.requires_grad_(True)
    settings, store = config.joint, LatentStore(config.work / "latents", config.device)
    modules = {"unet": parts.unet, "adapters": adapters}
    trainer = Trainer(
        "joint",
        modules,
        settings.lr,
        settings.minutes,
        config.work,
        settings.ema_decay,
        use_muon=True,
        warmup_steps=settings.warmup_steps,
        captures=True,
    )
    passed = [trainer.seconds]

    def check() -> None:
        if not trainer.captures:
            store.refresh()
        if trainer.seconds - passed[0] > 60 * snapshot_minutes or trainer.share() >= 1:
            passed[0] = trainer.seconds
            save_denoiser(trainer.averaged_modules()["unet"], parts.unet, config)
            write_adapter(adapters, trainer, settings.batch, config)
            sheet = config.work / f"joint-{trainer.step:06d}.png"
            write_subject_sheet(parts, adapters, vae, composer, config, sheet)

    losses = joint_losses(parts, adapters, make_views(parts, vae, config), store, config, trainer.step)
    trainer.run(losses, settings.batch, check)
