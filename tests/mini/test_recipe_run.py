"""The whole recipe, seconds per phase, from the committed pictures to a folder that loads and samples."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ezigen.adapters import read_card
from ezigen.config import LoopConfig, ModelConfig, SamplerConfig
from ezigen.mini import pictures_folder, weights_folder
from ezigen.mini.evaluate import make_cases
from ezigen.mini.recipe import adapters, latents, state, unet
from ezigen.mini.recipe.__main__ import PHASES
from ezigen.mini.recipe.config import (
    AdapterConfig,
    EncodersConfig,
    JointConfig,
    RecipeConfig,
    UnetConfig,
    VaeConfig,
    WorldConfig,
)
from ezigen.mini.recipe.package import package_weights, unpack_weights
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.models.fingerprint import model_fingerprint
from ezigen.sampling import load_generator

pytestmark = pytest.mark.slow
SECONDS = 1 / 60


def tiny(work: Path) -> RecipeConfig:
    return RecipeConfig(
        world=WorldConfig(pictures=pictures_folder(), num_backgrounds=2, num_morphs=3),
        work=work,
        vae=VaeConfig(batch=4, num_pictures=100, widths=(8, 16, 16), minutes=SECONDS, polish_minutes=SECONDS),
        unet=UnetConfig(batch=4, widths=(32, 32), head_dim=16, text_dim=32, num_latents=100, minutes=SECONDS),
        adapter=AdapterConfig(batch=4, minutes=SECONDS),
        joint=JointConfig(num_subjects=2, num_idle=1, minutes=SECONDS),
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


def test_the_packaged_weights_can_be_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "SHARD", 100)
    monkeypatch.setattr(adapters, "SHEET_SCENES", ("beach",))
    monkeypatch.setattr(adapters, "SHEET_PRODUCTS", ("pineapple",))
    work = tmp_path / "work"
    world = WorldConfig(pictures=pictures_folder(), num_backgrounds=2, num_morphs=3)
    # One step has to show, on however slow a machine: no warm-up, and no average that takes a while to move.
    joint = JointConfig(num_subjects=2, num_idle=1, minutes=SECONDS, warmup_steps=1, ema_decay=0.0, lr=5e-3)
    config = RecipeConfig(world=world, work=work, precision="float32", unet=UnetConfig(num_latents=100), joint=joint)
    unpack_weights(weights_folder(), work)
    PHASES["latents"](config)
    PHASES["joint"](config)
    folder = package_weights(work, tmp_path / "weights")
    assert {path.name for path in folder.iterdir()} == {path.name for path in weights_folder().iterdir()}
    card = read_card(folder / "adapter")
    assert card.base_fingerprint == model_fingerprint(str(folder)) != model_fingerprint("mini")
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(weights_folder() / name), load_file(folder / name)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_finished_phase_started_again_changes_nothing(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    PHASES["clip"](config)
    weights = (tmp_path / "clip" / "model.safetensors").read_bytes()
    PHASES["clip"](config)
    assert (tmp_path / "clip" / "model.safetensors").read_bytes() == weights
