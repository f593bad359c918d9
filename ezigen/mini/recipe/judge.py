"""The judge: a small classifier of held-out products, their hue and the scene, trained on the held-out renders alone.

It knows the world's truth and shares nothing with the model that is judged: another architecture, other weights, and
pictures of products which that model never saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from ezigen.mini.recipe.config import JUDGE_MINUTES, RecipeConfig
from ezigen.mini.recipe.pictures import to_tensor
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import PICTURES, Variant, make_variants, select_products
from ezigen.mini.world.scenes import SCENE_NAMES

WIDTHS = (32, 64, 96, 160)
BATCH = 64


def held_out_variants() -> list[Variant]:
    """Every held-out product in every hue, from the committed pictures."""
    return make_variants(select_products(held_out=True))


class Judge(nn.Module):
    """Convolutions and two linear heads: which variant (product and hue) and which scene a picture shows."""

    def __init__(self, num_variants: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.variant = nn.Linear(WIDTHS[-1] * 2, num_variants)
        self.scene = nn.Linear(WIDTHS[-1] * 2, len(SCENE_NAMES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of variants and of scenes for pictures `n x 3 x h x w` in [-1, 1]."""
        features = self.body(pixels)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return self.variant(pooled), self.scene(pooled)


def spoil(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, tint and grain as a small generator leaves them, so that the judge reads shapes and colours, not
    sharpness.
    """
    side = pixels.shape[-1]
    smaller = int(torch.randint(side // 3, side + 1, (), generator=generator))
    blurred = interpolate(pixels, size=(smaller, smaller), mode="bilinear", antialias=True)
    blurred = interpolate(blurred, size=(side, side), mode="bilinear")
    tint = 1 + 0.08 * torch.randn((len(pixels), 3, 1, 1), generator=generator)
    return (blurred * tint + 0.05 * torch.randn(pixels.shape, generator=generator)).clamp(-1, 1)


def judge_losses(judge: Judge, composer: Composer, seed: int) -> Iterator[Tensor]:
    """Endless classification losses."""
    rng, generator = np.random.default_rng((seed, 8)), torch.Generator().manual_seed(seed)
    while True:
        numbers = rng.integers(0, len(composer.variants), BATCH)
        scenes = rng.integers(0, len(SCENE_NAMES), BATCH)
        pairs = zip(numbers, scenes, strict=True)
        pixels = to_tensor([composer.compose(rng, composer.variants[n], SCENE_NAMES[s])[0] for n, s in pairs])
        variants, places = judge(spoil(pixels, generator))
        yield cross_entropy(variants, torch.from_numpy(numbers)) + cross_entropy(places, torch.from_numpy(scenes))


def train_judge(config: RecipeConfig) -> None:
    """Train (or finish training) the judge and save it as `work/judge/judge.safetensors`."""
    torch.manual_seed(config.seed)
    composer = Composer(held_out_variants(), config.world.side_px, config.world.num_backgrounds, config.seed + 1)
    judge = Judge(len(composer.variants))
    trainer = Trainer("judge", {"judge": judge}, 2e-3, min(JUDGE_MINUTES, config.encoders.minutes), config.work)
    trainer.run(judge_losses(judge, composer, config.seed + trainer.step), BATCH)
    (config.work / "judge").mkdir(exist_ok=True)
    save_file(judge.state_dict(), config.work / "judge" / "judge.safetensors")


@dataclass(frozen=True)
class Verdict:
    """What a picture shows: likelihoods of the variants (n, variants), log-likelihoods of the scenes (n, scenes)."""

    variants: Tensor
    scenes: Tensor


class Bench:
    """A trained judge with the names of its classes."""

    def __init__(self, weights: Path) -> None:
        table = [(p, s) for p, s in held_out_keys()]
        self.keys = [f"{product}/{shift}" for product, shift in table]
        self.products = [product for product, _ in table]
        self.judge = Judge(len(self.keys))
        self.judge.load_state_dict(load_file(weights))
        self.judge.eval()

    @torch.no_grad()
    def look(self, pictures: list[np.ndarray]) -> Verdict:
        """Judge pictures `h x w x 3` of bytes."""
        variants, scenes = self.judge(to_tensor(pictures))
        return Verdict(variants.softmax(-1), scenes.log_softmax(-1))


def held_out_keys() -> list[tuple[str, int]]:
    """(product name, hue shift) of every class, in the judge's order."""
    return [(v.product.name, v.hue_shift) for v in make_variants(select_products(held_out=True), PICTURES, side=96)]
