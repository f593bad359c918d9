"""The ten drawn scenes of the miniature world, each a function `(random generator, side) -> picture`.

A scene is drawn at twice the wanted side with Pillow and numpy and then reduced, so edges are smooth. Every draw
differs (horizon, colours, props), yet each scene keeps two or three features that name it at a glance at 64 px.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Painter = Callable[[Generator, int], Image.Image]


def jitter(rng: Generator, colour: Colour, amount: float = 14.0) -> Colour:
    """`colour` with the same random shift on all channels plus a little on each, clipped to 0..255."""
    shifted = np.array(colour) + rng.normal(0, amount * 0.6) + rng.normal(0, amount * 0.4, 3)
    r, g, b = np.clip(shifted, 0, 255).astype(int)
    return int(r), int(g), int(b)


def gradient(side: int, stops: list[tuple[float, Colour]]) -> Image.Image:
    """A vertical gradient through `stops`, each a (height 0..1 from the top, colour)."""
    rows = np.linspace(0, 1, side)
    heights = [height for height, _ in stops]
    channels = [np.interp(rows, heights, [colour[c] for _, colour in stops]) for c in range(3)]
    column = np.stack(channels, axis=-1)[:, None, :]
    return Image.fromarray(np.broadcast_to(column, (side, side, 3)).astype(np.uint8))


def paste_ground(picture: Image.Image, ground: Image.Image, edge: np.ndarray) -> None:
    """Put `ground` over `picture` below `edge`, the height in pixels of the border per column."""
    side = picture.width
    below = np.arange(side)[:, None] >= edge[None, :]
    picture.paste(ground, (0, 0), Image.fromarray((below * 255).astype(np.uint8)))


def hills(rng: Generator, side: int, height: float, swing: float, waves: float) -> np.ndarray:
    """A wavy horizon: per column a height in pixels around `height` (0..1) with amplitude `swing` (0..1)."""
    x = np.linspace(0, 2 * np.pi * waves, side)
    first, second = rng.uniform(0, 2 * np.pi, 2)
    wave: np.ndarray = 0.7 * np.sin(x + first) + 0.3 * np.sin(2.3 * x + second)
    return side * (height + swing * wave)


def speckle(rng: Generator, picture: Image.Image, strength: float) -> Image.Image:
    """Add soft grain of `strength` grey levels."""
    grain = rng.normal(0, strength, (picture.height // 2, picture.width // 2, 1)).repeat(2, 0).repeat(2, 1)
    return Image.fromarray(np.clip(np.asarray(picture, dtype=np.float32) + grain, 0, 255).astype(np.uint8))


def draw_clouds(rng: Generator, picture: Image.Image, count: int, lowest: float) -> None:
    """White puffs in the upper part, above `lowest` (0..1)."""
    draw, side = ImageDraw.Draw(picture), picture.width
    for _ in range(count):
        x, y, r = rng.uniform(0, side), rng.uniform(0.04, lowest) * side, rng.uniform(0.05, 0.08) * side
        for dx, scale in ((-1.1, 0.7), (0.0, 1.0), (1.1, 0.75)):
            draw.ellipse(
                (x + dx * r - r * scale, y - r * scale, x + dx * r + r * scale, y + r * scale * 0.6),
                fill=(250, 252, 255),
            )


def beach(rng: Generator, side: int) -> Image.Image:
    """Sky, a band of turquoise sea, yellow sand below, often a sun."""
    horizon, shore = rng.uniform(0.30, 0.38), rng.uniform(0.50, 0.58)
    picture = gradient(side, [(0, jitter(rng, (90, 180, 245))), (horizon, jitter(rng, (205, 236, 252)))])
    draw = ImageDraw.Draw(picture)
    if rng.random() < 0.7:
        x, r = rng.choice([0.15, 0.85]) * side, side * 0.09
        draw.ellipse((x - r, side * 0.06, x + r, side * 0.06 + 2 * r), fill=(255, 226, 90))
    sea = gradient(side, [(horizon, jitter(rng, (20, 130, 190))), (shore, jitter(rng, (70, 205, 205)))])
    paste_ground(picture, sea, np.full(side, horizon * side))
    edge = hills(rng, side, shore, 0.015, 1.5)
    paste_ground(picture, Image.new("RGB", (side, side), (245, 252, 250)), edge)
    sand = speckle(rng, gradient(side, [(shore, jitter(rng, (250, 226, 160))), (1, jitter(rng, (228, 188, 112)))]), 2.5)
    paste_ground(picture, sand, edge + side * 0.025)
    return picture


def fir(draw: ImageDraw.ImageDraw, x: float, foot: float, height: float, colour: Colour) -> None:
    """A fir tree of three stacked triangles with its foot at (x, foot)."""
    for level in range(3):
        top, half = foot - height * (1 - level * 0.22), height * (0.17 + 0.07 * level)
        draw.polygon([(x, top), (x - half, top + height * 0.45), (x + half, top + height * 0.45)], fill=colour)


def snow(rng: Generator, side: int) -> Image.Image:
    """Pale sky, dark firs on the horizon, white ground, falling flakes."""
    picture = gradient(side, [(0, jitter(rng, (150, 178, 208))), (0.6, jitter(rng, (214, 228, 242)))])
    draw = ImageDraw.Draw(picture)
    horizon = rng.uniform(0.46, 0.54)
    for x in rng.uniform(0, side, 7):
        fir(draw, x, (horizon + 0.03) * side, rng.uniform(0.2, 0.38) * side, jitter(rng, (52, 92, 92)))
    ground = gradient(side, [(horizon, (250, 252, 255)), (1, jitter(rng, (214, 226, 242), 6))])
    paste_ground(picture, ground, hills(rng, side, horizon, 0.03, 1.0))
    for x, y in rng.uniform(0, side, (26, 2)):
        r = rng.uniform(0.006, 0.016) * side
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))
    return picture


def grass(rng: Generator, side: int) -> Image.Image:
    """Blue sky with clouds over a bright green meadow with flowers."""
    horizon = rng.uniform(0.42, 0.5)
    picture = gradient(side, [(0, jitter(rng, (92, 170, 250))), (horizon, jitter(rng, (190, 226, 255)))])
    draw_clouds(rng, picture, 3, horizon - 0.14)
    ground = gradient(side, [(horizon, jitter(rng, (128, 208, 70))), (1, jitter(rng, (58, 150, 40)))])
    paste_ground(picture, ground, hills(rng, side, horizon, 0.025, 0.8))
    draw = ImageDraw.Draw(picture)
    for x, y in rng.uniform((0, horizon + 0.06), (1, 1), (60, 2)) * side:
        draw.line((x, y, x + rng.uniform(-2, 2), y - 0.035 * side), fill=jitter(rng, (70, 170, 44)), width=2)
    for x, y in rng.uniform((0, horizon + 0.08), (1, 0.98), (9, 2)) * side:
        r = 0.014 * side
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 120) if rng.random() < 0.5 else (255, 255, 255))
    return picture


def night(rng: Generator, side: int) -> Image.Image:
    """A dark blue sky with stars and a moon."""
    picture = gradient(side, [(0, jitter(rng, (10, 12, 48), 6)), (1, jitter(rng, (48, 44, 112), 10))])
    draw = ImageDraw.Draw(picture)
    for x, y in rng.uniform(0, side, (34, 2)):
        r = rng.uniform(0.006, 0.014) * side
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 250, 220))
    x, y, r = rng.choice([0.16, 0.84]) * side, rng.uniform(0.13, 0.2) * side, rng.uniform(0.08, 0.11) * side
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 240, 190))
    if rng.random() < 0.5:
        draw.ellipse((x - 0.3 * r, y - 1.1 * r, x + 1.5 * r, y + 0.8 * r), fill=picture.getpixel((side // 2, int(y))))
    return picture


def bricks(rng: Generator, side: int) -> Image.Image:
    """A red brick wall above a grey pavement."""
    picture = Image.new("RGB", (side, side), jitter(rng, (206, 192, 180)))
    draw, tone = ImageDraw.Draw(picture), jitter(rng, (172, 72, 54))
    height, width, gap = side / 9, side / 4.5, side / 55
    for row in range(9):
        start = -rng.uniform(0, 0.1) * width - (width / 2 if row % 2 else 0)
        for column in range(7):
            x, y = start + column * width, row * height
            draw.rectangle((x, y, x + width - gap, y + height - gap), fill=jitter(rng, tone, 12))
    floor = rng.uniform(0.76, 0.84)
    ground = gradient(side, [(floor, jitter(rng, (120, 120, 126))), (1, jitter(rng, (164, 164, 168)))])
    paste_ground(picture, ground, np.full(side, floor * side))
    return picture


def table(rng: Generator, side: int) -> Image.Image:
    """A wooden table top of planks before a plain cream wall."""
    edge = rng.uniform(0.5, 0.58)
    picture = gradient(side, [(0, jitter(rng, (238, 226, 204))), (edge, jitter(rng, (216, 198, 170)))])
    wood = gradient(side, [(edge, jitter(rng, (150, 92, 48))), (1, jitter(rng, (190, 124, 68)))])
    draw = ImageDraw.Draw(wood)
    for fraction in np.linspace(-0.7, 1.7, 11) + rng.uniform(-0.05, 0.05):
        draw.line(
            (side * (0.5 + (fraction - 0.5) * 0.62), edge * side, side * fraction, side), fill=(104, 58, 28), width=2
        )
    draw.line((0, edge * side, side, edge * side), fill=(92, 50, 24), width=max(2, side // 40))
    paste_ground(picture, wood, np.full(side, edge * side))
    return picture


def sea(rng: Generator, side: int) -> Image.Image:
    """Open water with rows of waves up to a high horizon."""
    horizon = rng.uniform(0.26, 0.34)
    picture = gradient(side, [(0, jitter(rng, (150, 205, 245))), (horizon, jitter(rng, (220, 238, 250)))])
    water = gradient(side, [(horizon, jitter(rng, (22, 84, 168))), (1, jitter(rng, (16, 116, 200)))])
    paste_ground(picture, water, np.full(side, horizon * side))
    draw, x = ImageDraw.Draw(picture), np.arange(0, side + 4, 4)
    for row in range(6):
        y = side * (horizon + 0.05 + 0.115 * row) + side * 0.014 * np.sin(
            x / side * 2 * np.pi * (6 - 0.5 * row) + rng.uniform(0, 6)
        )
        draw.line(
            list(zip(x.tolist(), y.tolist(), strict=True)), fill=jitter(rng, (150, 214, 246)), width=max(2, side // 45)
        )
    return picture


def desert(rng: Generator, side: int) -> Image.Image:
    """Orange dunes under a pale yellow sky, sometimes with a low red sun."""
    picture = gradient(side, [(0, jitter(rng, (250, 186, 110))), (0.5, jitter(rng, (255, 232, 178)))])
    if rng.random() < 0.6:
        x, r = rng.uniform(0.1, 0.9) * side, 0.08 * side
        ImageDraw.Draw(picture).ellipse((x - r, 0.14 * side, x + r, 0.14 * side + 2 * r), fill=(246, 110, 60))
    for height, colour in ((0.42, (226, 142, 74)), (0.54, (212, 118, 52)), (0.72, (232, 148, 76))):
        tone = jitter(rng, colour)
        low: Colour = (int(tone[0] * 0.86), int(tone[1] * 0.84), int(tone[2] * 0.8))
        paste_ground(picture, gradient(side, [(height, tone), (1, low)]), hills(rng, side, height, 0.05, 0.9))
    return picture


def forest(rng: Generator, side: int) -> Image.Image:
    """Tall brown trunks in dark green, moss below."""
    picture = gradient(side, [(0, jitter(rng, (24, 72, 40))), (0.6, jitter(rng, (84, 134, 72)))])
    draw = ImageDraw.Draw(picture)
    for x in (np.linspace(0.02, 0.98, 6) + rng.uniform(-0.06, 0.06, 6)) * side:
        half = rng.uniform(0.022, 0.045) * side
        draw.rectangle((x - half, 0, x + half, 0.72 * side), fill=jitter(rng, (82, 54, 34)))
    for x in rng.uniform(0, side, 12):
        r = rng.uniform(0.09, 0.15) * side
        draw.ellipse((x - r, -r, x + r, r * 1.1), fill=jitter(rng, (30, 92, 40)))
    ground = speckle(rng, gradient(side, [(0.62, jitter(rng, (52, 84, 34))), (1, jitter(rng, (36, 62, 26)))]), 2.5)
    paste_ground(picture, ground, hills(rng, side, rng.uniform(0.6, 0.66), 0.02, 1.5))
    return picture


def studio(rng: Generator, side: int) -> Image.Image:
    """A smooth pink or violet backdrop with a bright spot of light on the floor."""
    tone = (244, 150, 190) if rng.random() < 0.5 else (190, 150, 240)
    picture = gradient(
        side,
        [
            (0, jitter(rng, tone)),
            (0.66, jitter(rng, tone)),
            (0.74, jitter(rng, (226, 196, 226))),
            (1, jitter(rng, tone)),
        ],
    )
    light = Image.new("L", (side, side), 0)
    ImageDraw.Draw(light).ellipse((0.14 * side, 0.66 * side, 0.86 * side, 0.98 * side), fill=170)
    picture.paste((255, 250, 255), (0, 0), light.filter(ImageFilter.GaussianBlur(side / 16)))
    return picture


SCENES: dict[str, Painter] = {
    "beach": beach, "snow": snow, "grass": grass, "night": night, "bricks": bricks,
    "table": table, "sea": sea, "desert": desert, "forest": forest, "studio": studio,
}  # fmt: skip
SCENE_NAMES: tuple[str, ...] = tuple(SCENES)


def draw_scene(name: str, rng: Generator, side: int) -> Image.Image:
    """Draw the scene `name` as an RGB picture of `side` x `side` pixels."""
    return SCENES[name](rng, 2 * side).resize((side, side), Image.Resampling.BOX)
