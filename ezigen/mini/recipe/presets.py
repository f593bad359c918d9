"""The two presets of the recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from ezigen.mini.recipe.config import (
    AdapterConfig,
    EncodersConfig,
    JointConfig,
    RecipeConfig,
    UnetConfig,
    VaeConfig,
    WorldConfig,
)


def cpu_precision() -> Literal["float32", "bfloat16"]:
    """bfloat16 where the CPU has wide vectors for it; with AVX2 alone it is emulated, ten times slower than fp32."""
    return "bfloat16" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "float32"


def cpu(work: Path, pictures: Path) -> RecipeConfig:
    """One sitting on two cores: about two and a half hours, two phases at a time on one thread each."""
    return RecipeConfig(
        world=WorldConfig(pictures=pictures),
        work=work,
        precision=cpu_precision(),
        vae=VaeConfig(minutes=16),
        unet=UnetConfig(batch=16, num_latents=80_000, minutes=70),
        adapter=AdapterConfig(minutes=30),
        encoders=EncodersConfig(minutes=10),
    )


def gpu(work: Path, pictures: Path) -> RecipeConfig:
    """A quarter of an hour on one large GPU: the same networks, fifty to a hundred times the samples."""
    return RecipeConfig(
        world=WorldConfig(pictures=pictures, num_backgrounds=256, num_morphs=8_000),
        work=work,
        device="cuda",
        processes=max(1, os.cpu_count() or 1),
        threads=4,
        vae=VaeConfig(batch=256, num_pictures=60_000, minutes=0.75, polish_minutes=0.4, ema_decay=0.998),
        unet=UnetConfig(batch=384, num_latents=400_000, num_captions=2, minutes=2.0, ema_decay=0.999),
        adapter=AdapterConfig(batch=256, minutes=0.35),
        joint=JointConfig(num_subjects=128, num_idle=128, warmup_steps=200, ema_decay=0.999, minutes=2.5),
        encoders=EncodersConfig(batch=256, minutes=3),
    )


PRESETS = {"cpu": cpu, "gpu": gpu}
