"""The two presets of the recipe."""

from __future__ import annotations

from pathlib import Path

from ezigen.mini.recipe.config import (
    AdapterConfig,
    EncodersConfig,
    RecipeConfig,
    UnetConfig,
    VaeConfig,
    WorldConfig,
)


def cpu(work: Path, pictures: Path) -> RecipeConfig:
    """One sitting on two cores: about two and a half hours, two phases at a time on one thread each."""
    return RecipeConfig(
        world=WorldConfig(pictures=pictures),
        work=work,
        vae=VaeConfig(minutes=16),
        unet=UnetConfig(batch=16, num_latents=80_000, minutes=70),
        adapter=AdapterConfig(minutes=30),
        encoders=EncodersConfig(minutes=10),
    )


def gpu(work: Path, pictures: Path) -> RecipeConfig:
    """About half an hour on one large GPU: the same networks, twenty to fifty times the samples."""
    return RecipeConfig(
        world=WorldConfig(pictures=pictures, num_backgrounds=256),
        work=work,
        device="cuda",
        threads=4,
        vae=VaeConfig(batch=256, minutes=5),
        unet=UnetConfig(batch=256, num_latents=400_000, minutes=15, ema_decay=0.9995),
        adapter=AdapterConfig(batch=256, minutes=8),
        encoders=EncodersConfig(batch=256, minutes=3),
    )


PRESETS = {"cpu": cpu, "gpu": gpu}
