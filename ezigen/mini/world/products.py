"""Products of the miniature world: their table, their cut-outs and their hue variants.

A cut-out is a picture of one object with an alpha channel. The table (`products.csv`) names each one, gives it a
coarse class word and says whether it may be trained on. A hue variant turns the colours of a cut-out around the
colour circle, so that one shape has several identities.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parent / "pictures"
HUE_SHIFTS: tuple[int, ...] = (0, 60, 120, 180, 240, 300)
HUE_NAMES = (
    (15, "red"),
    (45, "orange"),
    (70, "yellow"),
    (160, "green"),
    (200, "cyan"),
    (260, "blue"),
    (300, "purple"),
    (345, "pink"),
    (361, "red"),
)


@dataclass(frozen=True)
class Product:
    """One kind of object. `code` is the file stem of its picture; `held_out` products never take part in any
    training.
    """

    code: str
    name: str
    subject_class: str
    held_out: bool


@dataclass(frozen=True)
class Variant:
    """A product at one turn of the colour circle (`hue_shift` in degrees) with the word for its main colour."""

    product: Product
    hue_shift: int
    hue_word: str
    pixels: NDArray[np.uint8]

    @property
    def key(self) -> str:
        """The identity as text, for example `pineapple/120`."""
        return f"{self.product.name}/{self.hue_shift}"


@cache
def read_products() -> tuple[Product, ...]:
    """All products of the table, in its order."""
    with (HERE / "products.csv").open(encoding="utf-8", newline="") as rows:
        return tuple(
            Product(r["code"], r["name"], r["subject_class"], r["split"] == "held_out") for r in csv.DictReader(rows)
        )


def select_products(*, held_out: bool, folder: Path = PICTURES) -> list[Product]:
    """The products of one split whose picture lies in `folder`."""
    return [p for p in read_products() if p.held_out == held_out and (folder / f"{p.code}.webp").is_file()]


def load_cutout(product: Product, folder: Path = PICTURES, side: int = 96) -> Image.Image:
    """The product's picture, cropped to its visible part, centred on a transparent square of `side` pixels (RGBA)."""
    with Image.open(folder / f"{product.code}.webp", formats=("WEBP",)) as picture:
        cutout = picture.convert("RGBA")
    cutout = cutout.crop(cutout.getchannel("A").point(lambda a: 255 if a > 24 else 0).getbbox())
    scale = side / max(cutout.size)
    cutout = cutout.resize(
        (max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale))), Image.Resampling.LANCZOS
    )
    square = Image.new("RGBA", (side, side))
    square.paste(cutout, ((side - cutout.width) // 2, (side - cutout.height) // 2))
    return square


def shift_hue(cutout: Image.Image, degrees: int) -> Image.Image:
    """`cutout` with its hue turned by `degrees`; alpha, saturation and value stay."""
    if degrees % 360 == 0:
        return cutout
    hsv = np.array(cutout.convert("RGB").convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(degrees * 256 / 360)) % 256
    turned = Image.fromarray(hsv, "HSV").convert("RGB")
    turned.putalpha(cutout.getchannel("A"))
    return turned


def name_hue(cutout: Image.Image) -> str:
    """The word for the main colour of a cut-out: the heaviest hue by saturation, or white, grey, black, brown."""
    pixels = np.asarray(cutout, dtype=np.float32) / 255
    hsv = np.asarray(cutout.convert("RGB").convert("HSV"), dtype=np.float32) / 255
    weight = pixels[..., 3]
    colourful = weight * (hsv[..., 1] > 0.25) * (hsv[..., 2] > 0.15) * hsv[..., 1]
    if colourful.sum() < 0.22 * weight.sum():
        value = float((weight * hsv[..., 2]).sum() / weight.sum())
        return "white" if value > 0.8 else "gray" if value > 0.35 else "black"
    degrees = hsv[..., 0] * 360
    totals: dict[str, float] = {}
    low = 0
    for high, word in HUE_NAMES:
        inside = (degrees >= low) & (degrees < high)
        totals[word] = totals.get(word, 0.0) + float((colourful * inside).sum())
        low = high
    word = max(totals, key=lambda key: totals[key])
    value = float((colourful * hsv[..., 2]).sum() / colourful.sum())
    return "brown" if word in ("orange", "red") and value < 0.62 else word


def make_variant(product: Product, hue_shift: int, folder: Path = PICTURES, side: int = 96) -> Variant:
    """The variant of `product` turned by `hue_shift` degrees, pixels `side x side x 4`."""
    cutout = shift_hue(load_cutout(product, folder, side), hue_shift)
    return Variant(product, hue_shift, name_hue(cutout), np.asarray(cutout))


def make_variants(
    products: list[Product], folder: Path = PICTURES, side: int = 96, shifts: tuple[int, ...] = HUE_SHIFTS
) -> list[Variant]:
    """Every product in every hue; grey products, whose colour does not turn, only once."""
    variants: list[Variant] = []
    for product in products:
        first = make_variant(product, 0, folder, side)
        turned = () if first.hue_word in ("white", "gray", "black") else tuple(s for s in shifts if s)
        variants += [first, *(make_variant(product, s, folder, side) for s in turned)]
    return variants
