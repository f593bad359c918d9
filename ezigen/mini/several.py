"""Between two subjects, and two in one image, on products never trained on: `python -m ezigen.mini.several`.

Interpolation (paper, Fig. 17): the small DINO's similarity to the first subject along the way, and to the second. Two
subjects side by side: how often the image is more like each of its subjects than like another held-out product, which
by chance is half of the time. Intervals are 95 % bootstrap intervals over pairs of products.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ezigen.config import ModelConfig
from ezigen.images import Picture, side_by_side
from ezigen.metrics import load_scorer
from ezigen.mini.evaluate import interval, subject_picture
from ezigen.mini.world.benchmarks import PRODUCTS
from ezigen.mini.world.captions import PHRASES
from ezigen.mini.world.products import Variant, make_variant, select_products
from ezigen.models.pixels import to_pixels
from ezigen.personalizer import Personalizer

SCENES = ("grass", "beach", "studio")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two subjects in a scene."""

    first: Variant
    second: Variant
    scene: str

    @property
    def pictures(self) -> tuple[Picture, Picture]:
        """Both, upright on white."""
        return subject_picture(self.first), subject_picture(self.second)

    @property
    def classes(self) -> tuple[str, str]:
        """What they are."""
        return self.first.product.subject_class, self.second.product.subject_class


def make_pairs(count: int) -> list[Pair]:
    """Held-out products, each with the one five further on in the list, then six, and so on."""
    known = {p.name: p for p in select_products(held_out=True)}
    variants = [make_variant(known[name], 0) for name in PRODUCTS]
    size = len(variants)
    return [
        Pair(variants[n % size], variants[(n + 5 + n // size) % size], SCENES[n % len(SCENES)]) for n in range(count)
    ]


class Looks:
    """The small DINO's view of pictures, as unit vectors."""

    def __init__(self) -> None:
        dino = load_scorer(ModelConfig()).dino
        assert dino is not None
        self._dino = dino

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """One vector (n, D) per image."""
        pixels = torch.stack([to_pixels(image.convert("RGB")) for image in images])
        with torch.no_grad():
            return torch.nn.functional.normalize(self._dino.cls(pixels), dim=-1)


def interpolate(personalizer: Personalizer, pair: Pair, num_images: int) -> list[Image.Image]:
    """The strip between a pair's subjects."""
    prompt = f"a photo of a thing {PHRASES[pair.scene][0]}"
    strip = personalizer.interpolate(
        *pair.pictures, prompt, num_images=num_images, subject_classes=pair.classes, seed=4
    )
    return [sample.image for sample in strip]


def draw_both(personalizer: Personalizer, pair: Pair) -> Image.Image:
    """One image with both subjects."""
    prompt = f"a photo of a {pair.classes[0]} and a {pair.classes[1]} {PHRASES[pair.scene][0]}"
    return personalizer.generate(list(pair.pictures), prompt, subject_class=pair.classes, seed=4).image


def found_share(image: Tensor, subject: Tensor, others: Tensor) -> float:
    """Share of the other products (n, D) that an image (D,) is less like than its subject (D,)."""
    return float((others @ image < subject @ image).float().mean())


def main(arguments: list[str] | None = None) -> None:
    """Draw, measure, print, write figures and a sheet."""
    parser = argparse.ArgumentParser(prog="python -m ezigen.mini.several", description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--speed", default="balanced")
    parser.add_argument("--figures", type=Path, default=Path("docs/several-figures.json"))
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/several.webp"))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    personalizer, looks, pairs = Personalizer.load(speed=args.speed), Looks(), make_pairs(args.pairs)
    held_out = {v.product.name: v for v in (make_variant(p, 0) for p in select_products(held_out=True))}
    products = dict(zip(held_out, looks([subject_picture(v).rgb for v in held_out.values()]), strict=True))
    curves: list[np.ndarray] = []
    found: list[tuple[float, float]] = []
    rows: list[Image.Image] = []
    for pair in pairs:
        strip, both = interpolate(personalizer, pair, args.images), draw_both(personalizer, pair)
        names = [pair.first.product.name, pair.second.product.name]
        seen, (first, second) = looks(strip), (products[name] for name in names)
        curves.append(np.stack([(seen @ first).numpy(), (seen @ second).numpy()]))
        image, others = looks([both])[0], torch.stack([v for n, v in products.items() if n not in names])
        found.append((found_share(image, first, others), found_share(image, second, others)))
        pictures = [picture.rgb for picture in pair.pictures]
        rows.append(side_by_side([pictures[0], *strip, pictures[1], both]))
        print(f"{names[0]} - {names[1]}: {curves[-1].round(2).tolist()}, both {found[-1]}", flush=True)
    table = {
        side: [interval(np.array([c[n, i] for c in curves]), np.arange(len(curves))) for i in range(args.images)]
        for n, side in enumerate(("first", "second"))
    }
    shares = {
        "either": interval(np.array(found).mean(1), np.arange(len(found))),
        "the less visible one": interval(np.array(found).min(1), np.arange(len(found))),
    }
    print(json.dumps({"dino": table, "found": shares}, indent=1))
    for path in (args.figures, args.sheet):
        path.parent.mkdir(parents=True, exist_ok=True)
    figures = {"pairs": len(pairs), "images": args.images, "dino": table, "found": shares}
    args.figures.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height + 2 for row in rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * (row.height + 2)))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.BICUBIC).save(args.sheet, quality=85)


if __name__ == "__main__":
    main()
