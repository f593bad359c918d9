"""The whole recipe, seconds per phase, from the committed pictures to a folder that loads and samples."""

from pathlib import Path

import pytest

from ezigen.config import LoopConfig, ModelConfig, SamplerConfig
from ezigen.mini import pictures_folder
from ezigen.mini.evaluate import make_cases
from ezigen.mini.recipe import adapters, latents, state, unet
from ezigen.mini.recipe.__main__ import PHASES
from ezigen.mini.recipe.config import (
    AdapterConfig,
    EncodersConfig,
    RecipeConfig,
    UnetConfig,
    VaeConfig,
    WorldConfig,
)
from ezigen.mini.recipe.package import package_weights
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.sampling import load_generator

pytestmark = pytest.mark.slow
SECONDS = 1 / 60


def tiny(work: Path) -> RecipeConfig:
    return RecipeConfig(
        world=WorldConfig(pictures=pictures_folder(), num_backgrounds=2),
        work=work,
        vae=VaeConfig(batch=4, widths=(8, 16, 16), minutes=SECONDS, polish_minutes=SECONDS),
        unet=UnetConfig(batch=4, widths=(32, 32), head_dim=16, text_dim=32, num_latents=100, minutes=SECONDS),
        adapter=AdapterConfig(batch=4, minutes=SECONDS, joint_minutes=SECONDS),
        encoders=EncodersConfig(batch=8, minutes=SECONDS),
    )


def test_the_recipe_makes_a_model_that_loads_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "SHARD", 100)
    monkeypatch.setattr(unet, "SHEET_CAPTIONS", unet.SHEET_CAPTIONS[:2])
    monkeypatch.setattr(adapters, "SHEET_SCENES", ("beach",))
    monkeypatch.setattr(state, "CHECKPOINT_EVERY_S", 5.0)
    config = tiny(tmp_path / "work")
    for train in PHASES.values():
        train(config)
    assert list((tmp_path / "work" / "text_to_image").glob("samples-*.png"))
    assert list((tmp_path / "work").glob("adapters-*.png"))
    folder = package_weights(config.work, tmp_path / "weights")
    model = ModelConfig(model=str(folder), adapter=str(folder / "adapter"), image_encoder=str(folder / "dinov2"))
    sampler = SamplerConfig(num_steps=4, guidance_scale=2.0, loops=LoopConfig(min_loops=1, max_loops=2))
    case = make_cases(["pineapple"], SCENE_NAMES, 1)[0]
    sample = load_generator(model, sampler).generate([case.request])[0]
    assert sample.image.size == (64, 64)
    assert 1 <= sample.num_loops <= 2


def test_a_finished_phase_started_again_changes_nothing(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    PHASES["clip"](config)
    weights = (tmp_path / "clip" / "model.safetensors").read_bytes()
    PHASES["clip"](config)
    assert (tmp_path / "clip" / "model.safetensors").read_bytes() == weights
