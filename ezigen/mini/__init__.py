"""The embedded model: its weights, the world it was trained on, and a sample catalog. Importing this costs no torch."""

from __future__ import annotations

from pathlib import Path

from ezigen.mini.world.products import Product, read_products

__all__ = ["Product", "catalog_file", "pictures_folder", "read_products", "weights_folder"]

HERE = Path(__file__).resolve().parent


def weights_folder() -> Path:
    """The folder of the embedded Stable Diffusion stack, with `adapter`, `clip` and `dinov2` beside `unet`, `vae`,
    ...
    """
    return HERE / "weights"


def catalog_file() -> Path:
    """The sample catalog: good rows for held-out products, and four rows that are wrong on purpose."""
    return HERE / "catalog" / "catalog.csv"


def pictures_folder() -> Path:
    """The committed cut-outs (`<code>.webp`), with their licence."""
    return HERE / "pictures"
