"""Things that nobody has seen: cut-outs of the miniature world, bent and recoloured beyond recognition.

A few hundred products are soon known by heart, and an adapter that knows them reads a subject as one of them. Morphs
make each subject a thing of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates, zoom

from ezigen.mini.world.products import PICTURES, Product, Variant, load_cutout, name_hue

KNOTS = 4
"""Knots per side of the displacement field."""


def make_morph(rng: Generator, number: int, product: Product, folder: Path = PICTURES, side: int = 96) -> Variant:
    """A random morph of `product`; `number` (from 0) tells it from all others: its key ends in -1 - number."""
    cutout = np.asarray(load_cutout(product, folder, side))
    bent = Image.fromarray(recolour(rng, bend(rng, cutout)), "RGBA")
    return Variant(product, -1 - number, name_hue(bent), np.asarray(bent))


def bend(rng: Generator, cutout: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A cut-out (`n x n x 4`) stretched, sheared and bent smoothly, centred and as large as before."""
    n = len(cutout)
    axis = np.linspace(-1, 1, n)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    stretch, shear = np.exp(rng.uniform(-0.3, 0.3)), rng.uniform(-0.25, 0.25)
    field = zoom(rng.normal(0, 0.11, (2, KNOTS, KNOTS)), (1, n / KNOTS, n / KNOTS), order=3)
    rows, columns = y * stretch + field[0], (x + shear * y) / stretch + field[1]
    # A frame of twice the side: what is bent outwards must not be cut off before it is measured.
    wide = np.pad(cutout, ((n // 2, n // 2), (n // 2, n // 2), (0, 0)))
    alpha = wide[..., 3:].astype(np.float32) / 255
    layers = np.concatenate([wide[..., :3] * alpha, wide[..., 3:]], axis=2)  # premultiplied: no dark rims
    middle = (len(wide) - 1) / 2
    where = np.stack([middle + rows * (n - 1), middle + columns * (n - 1)])
    moved = np.stack([map_coordinates(layers[..., c], where, order=1) for c in range(4)], axis=2)
    moved[..., :3] /= np.maximum(moved[..., 3:] / 255, 1e-3)
    picture = Image.fromarray(np.clip(moved + 0.5, 0, 255).astype(np.uint8), "RGBA")
    return fill_square(picture, n)


def fill_square(picture: Image.Image, side: int) -> NDArray[np.uint8]:
    """The visible part of `picture`, as large as fits and centred on a transparent square (`side x side x 4`)."""
    part = picture.crop(picture.getchannel("A").point(lambda a: 255 if a > 24 else 0).getbbox())
    scale = side / max(part.size)
    part = part.resize(
        (max(1, round(part.width * scale)), max(1, round(part.height * scale))), Image.Resampling.BICUBIC
    )
    square = Image.new("RGBA", (side, side))
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return np.asarray(square)


def recolour(rng: Generator, cutout: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A cut-out whose two halves of the colour circle turn by different angles, with another saturation and value."""
    hsv = np.array(Image.fromarray(cutout, "RGBA").convert("RGB").convert("HSV")).astype(np.float32)
    pivot, turns = rng.uniform(0, 256), rng.uniform(0, 256, 2)
    half = ((hsv[..., 0] - pivot) % 256) < 128
    hsv[..., 0] = (hsv[..., 0] + np.where(half, turns[0], turns[1])) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] * np.exp(rng.uniform(-0.5, 0.3)), 0, 255)
    hsv[..., 2] = 255 * (hsv[..., 2] / 255) ** np.exp(rng.uniform(-0.4, 0.4))
    rgb = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")
    return np.concatenate([np.asarray(rgb), cutout[..., 3:]], axis=2)
