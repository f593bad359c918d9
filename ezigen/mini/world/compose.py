"""Putting a product into a scene: poses, shadows, blending. Fast enough (thousands a second) never to starve a
trainer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from ezigen.mini.world.captions import random_caption
from ezigen.mini.world.products import Variant
from ezigen.mini.world.scenes import SCENE_NAMES, draw_scene

FLOATING = ("night",)
Pixels = NDArray[np.uint8]
Layer = NDArray[np.float32]


@dataclass(frozen=True)
class Pose:
    """Where a product stands: `size`, `x`, `foot` as shares of the frame's side, `turn` in degrees, mirrored or
    not, brightness factor.
    """

    size: float
    x: float
    foot: float
    turn: float
    mirrored: bool
    light: float


@dataclass(frozen=True)
class Sample:
    """A composed picture (`side x side x 3`) with its truth; `mask` (`side x side`, 0..255) is where the product is
    seen.
    """

    pixels: Pixels
    mask: Pixels
    caption: str
    variant: Variant
    scene: str | None
    pose: Pose


def draw_pose(rng: Generator, scene: str | None) -> Pose:
    """A random pose: large and nearly upright; in a scene it stands near the lower edge, alone on white it is
    centred.
    """
    mirrored, light = bool(rng.random() < 0.5), float(rng.uniform(0.88, 1.08))
    turn = float(rng.normal(0, 4))
    if scene is None:
        size = float(rng.uniform(0.74, 0.92))
        return Pose(size, float(rng.uniform(0.47, 0.53)), 0.5 + size / 2, turn, mirrored, 1.0)
    size = float(rng.uniform(0.60, 0.76))
    foot = float(rng.uniform(0.46 + size / 2, 0.54 + size / 2)) if scene in FLOATING else float(rng.uniform(0.83, 0.92))
    return Pose(size, float(rng.uniform(0.44, 0.56)), foot, turn, mirrored, light)


def place(cutout: Pixels, pose: Pose, side: int) -> Layer:
    """The cut-out (`n x n x 4`) in `pose` on a transparent frame `side x side x 4`, values 0..1, colours
    premultiplied by alpha.

    The foot of the pose is where the lowest visible pixel stands.
    """
    matrix = pose_matrix(cutout, pose, side)
    picture = Image.fromarray(cutout, "RGBA")
    if cutout.shape[0] > 1.7 * pose.size * side:
        # Bilinear sampling alone would skip pixels and leave jagged edges.
        picture, matrix = picture.reduce(2), tuple(value / 2 for value in matrix)
    placed = picture.convert("RGBa").transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    layer: Layer = np.frombuffer(placed.tobytes(), dtype=np.uint8).reshape(side, side, 4).astype(np.float32)
    layer /= np.float32(255)
    layer[..., :3] = np.minimum(layer[..., :3] * pose.light, layer[..., 3:])
    return layer


def pose_matrix(cutout: Pixels, pose: Pose, side: int) -> tuple[float, ...]:
    """The affine map from frame to cut-out pixels, as Pillow's six numbers."""
    n, length = cutout.shape[0], pose.size * side
    lowest = float(np.flatnonzero(cutout[..., 3].max(1) > 24)[-1]) + 1
    x, y = pose.x * side, pose.foot * side - (lowest / n - 0.5) * length
    angle, zoom = math.radians(pose.turn), n / length
    flip = -1.0 if pose.mirrored else 1.0
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    a, b = flip * cos, flip * sin
    return a, b, n / 2 - a * x - b * y, -sin, cos, n / 2 + sin * x - cos * y


def contact_shadow(pose: Pose, side: int, width: float) -> Layer:
    """A soft dark ellipse under the foot; `width` is the product's visible width as a share of the frame. `side x
    side`, 0..1.
    """
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    across = ((axis - pose.x) / (0.5 * width + 0.02)) ** 2
    along = ((axis - pose.foot + 0.01) / 0.035) ** 2
    return (0.5 * np.exp(-(across[None, :] + along[:, None]))).astype(np.float32)


class Composer:
    """Draws samples from a set of variants; scenes are drawn once (`num_backgrounds` each) and reused with random
    mirroring.
    """

    def __init__(self, variants: list[Variant], side: int = 64, num_backgrounds: int = 64, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.variants, self.side = variants, side
        self.backgrounds = {
            name: [np.asarray(draw_scene(name, rng, side)) for _ in range(num_backgrounds)] for name in SCENE_NAMES
        }
        first = {v.product.name: i for i, v in reversed(list(enumerate(variants)))}
        self.originals = [first[v.product.name] for v in variants]
        self.white = np.full((side, side, 3), 255, np.uint8)

    def draw_variant(self, rng: Generator) -> Variant:
        """A random product, half of the time in its own colours, else in a random hue."""
        number = int(rng.integers(len(self.variants)))
        return self.variants[self.originals[number]] if rng.random() < 0.5 else self.variants[number]

    def background(self, rng: Generator, scene: str | None) -> Pixels:
        """A random picture of `scene` (white when None), mirrored half of the time."""
        if scene is None:
            return self.white
        chosen = self.backgrounds[scene]
        picture = chosen[int(rng.integers(len(chosen)))]
        return picture[:, ::-1] if rng.random() < 0.5 else picture

    def compose(
        self, rng: Generator, variant: Variant, scene: str | None, pose: Pose | None = None
    ) -> tuple[Pixels, Pixels]:
        """`variant` in `scene` (None: alone on white): pixels `side x side x 3` and mask `side x side`."""
        pose = pose or draw_pose(rng, scene)
        layer = place(variant.pixels, pose, self.side)
        picture = self.background(rng, scene).astype(np.float32)
        if scene is not None and scene not in FLOATING:
            width = pose.size * float((variant.pixels[..., 3].max(0) > 24).mean())
            picture *= (1 - contact_shadow(pose, self.side, width))[..., None]
        blended = picture * (1 - layer[..., 3:]) + 255 * layer[..., :3]
        return np.clip(blended + 0.5, 0, 255).astype(np.uint8), (layer[..., 3] * 255).astype(np.uint8)

    def sample(self, rng: Generator, white_share: float = 0.0) -> Sample:
        """A random product in a random scene; with probability `white_share` alone on white."""
        variant = self.draw_variant(rng)
        scene = None if rng.random() < white_share else SCENE_NAMES[int(rng.integers(len(SCENE_NAMES)))]
        pose = draw_pose(rng, scene)
        pixels, mask = self.compose(rng, variant, scene, pose)
        product = variant.product
        caption = random_caption(rng, product.name, product.subject_class, variant.hue_word, scene)
        return Sample(pixels, mask, caption, variant, scene, pose)
