"""Composed pictures for the autoencoder."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.workers import spread
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.morphs import make_morph
from ezigen.mini.world.products import Variant, make_variants, select_products

CHUNK = 250


@cache
def build_composer(config: RecipeConfig) -> Composer:
    """The composer of training products in every hue, and of their morphs."""
    folder = config.world.pictures
    products = select_products(held_out=False, folder=folder)
    variants = make_variants(products, folder)

    def morph(number: int) -> Variant:
        rng = np.random.default_rng((config.seed, 11, number))
        return make_morph(rng, number, products[int(rng.integers(len(products)))], folder)

    variants += spread(morph, range(config.world.num_morphs), config.processes)
    return Composer(variants, config.world.side_px, config.world.num_backgrounds, config.seed)


def to_tensor(pixels: list[np.ndarray]) -> Tensor:
    """Pictures `h x w x 3` of bytes as one tensor `n x 3 x h x w` in [-1, 1]."""
    return to_signed(torch.from_numpy(np.stack(pixels)))


def to_signed(pixels: Tensor) -> Tensor:
    """Pictures `n x h x w x 3` of bytes as `n x 3 x h x w` in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)


@cache
def compose_pictures(config: RecipeConfig) -> Tensor:
    """`config.vae.num_pictures` pictures of the world (`n x h x w x 3`, bytes) on the configured device."""
    composer = build_composer(config)

    def compose(chunk: int) -> np.ndarray:
        rng = np.random.default_rng((config.seed, 1, chunk))
        return np.stack([composer.sample(rng, 0.1).pixels for _ in range(CHUNK)])

    chunks = spread(compose, range(-(-config.vae.num_pictures // CHUNK)), config.processes)
    return torch.from_numpy(np.concatenate(list(chunks))[: config.vae.num_pictures]).to(config.device)


def random_crops(pictures: Tensor, batch: int) -> Tensor:
    """`batch` half-side crops of random pictures in [-1, 1], with random numbers of the pictures' device."""
    side, device = pictures.shape[1], pictures.device
    half = side // 2
    steps = torch.arange(half, device=device)
    rows, columns = torch.randint(0, side - half + 1, (2, batch, 1), device=device) + steps
    chosen = torch.randint(0, len(pictures), (batch, 1, 1), device=device)
    return to_signed(pictures[chosen, rows[:, :, None], columns[:, None, :]])


def random_pictures(pictures: Tensor, count: int) -> Tensor:
    """`count` random whole pictures in [-1, 1]."""
    return to_signed(pictures[torch.randint(0, len(pictures), (count,), device=pictures.device)])
