"""The shipped weights open with the usual libraries and do what they were trained for, on products they never saw."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ezigen.config import ModelConfig, SamplerConfig, embedded
from ezigen.metrics import load_scorer
from ezigen.mini import weights_folder
from ezigen.mini.evaluate import make_cases
from ezigen.mini.recipe.judge import Bench
from ezigen.mini.recipe.pictures import to_tensor
from ezigen.mini.truth import Truth, judge_scores
from ezigen.mini.world.benchmarks import PRODUCTS
from ezigen.mini.world.captions import describe
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import make_variants, select_products
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.models import load_stack
from ezigen.sampling import load_generator

MODEL = ModelConfig(model="mini")


@pytest.fixture(scope="module")
def composer() -> Composer:
    products = select_products(held_out=True)[:8]
    return Composer(make_variants(products, shifts=(0,)), num_backgrounds=4, seed=3)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(weights_folder() / "judge" / "judge.safetensors")


def test_the_weights_are_small_and_complete() -> None:
    folder = weights_folder()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 30_000_000
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "adapter", "clip", "dinov2"):
        assert (folder / part).is_dir()
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"


def test_diffusers_opens_the_folder() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(weights_folder(), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32
    picture = pipeline("a photo of a bird in the snow", height=64, width=64, num_inference_steps=2).images[0]
    assert picture.size == (64, 64)


def test_the_autoencoder_keeps_held_out_products(composer: Composer) -> None:
    vae = load_stack("mini", device="cpu").vae
    rng = np.random.default_rng(0)
    pixels = to_tensor([composer.sample(rng).pixels for _ in range(16)])
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        error = (vae.decode(latents).sample.clamp(-1, 1) - pixels).square().mean()
    assert 10 * torch.log10(4 / error) > 29
    assert float((latents * vae.config.scaling_factor).std()) == pytest.approx(1, abs=0.1)


def test_scenes_are_the_ones_the_prompt_names(bench: Bench) -> None:
    generator = load_generator(MODEL, SamplerConfig(mode="text_only", num_steps=12, guidance_scale=4.0))
    cases = make_cases(["pineapple", "penguin", "car"], SCENE_NAMES, 1)
    samples = generator.generate([case.request for case in cases])
    truths = [Truth(c.variant.product.name, c.variant.key, c.scene) for c in cases]
    right = [judge_scores(bench, s.image, t)["scene"] for t, s in zip(truths, samples, strict=True)]
    assert np.mean(right) >= 0.8


def test_transfer_shows_the_product_and_loops_show_it_better() -> None:
    """As people get it: the shipped sampler. On twelve products in four scenes: 0.12, then 0.58, then 0.79.

    Asked for is half of what these four gain, in one scene each. The iterative mode's first image is the decoupled one.
    """
    shown = {"pineapple", "wrapped gift", "backpack", "tropical fish"}
    cases = [case for case in make_cases(PRODUCTS, SCENE_NAMES, 1)[::4] if case.variant.product.name in shown]
    requests = [case.request for case in cases]
    text_only = load_generator(MODEL, embedded().model_copy(update={"mode": "text_only"})).generate(requests)
    iterative = load_generator(MODEL, embedded()).generate(requests)
    scorer = load_scorer(MODEL)

    def identity(images: list[Image.Image]) -> float:
        scores = [scorer.score(i, c.prompt, [c.subject])["dino"] for c, i in zip(cases, images, strict=True)]
        return float(np.mean(scores))

    without = identity([sample.image for sample in text_only])
    transferred = identity([sample.loops[0] for sample in iterative])
    looped = identity([sample.image for sample in iterative])
    assert transferred > without + 0.2
    assert looped > transferred + 0.2
    assert looped > 0.65


def test_clip_finds_the_scene_of_a_picture(composer: Composer) -> None:
    clip = load_scorer(MODEL).clip
    assert clip is not None
    rng, right = np.random.default_rng(1), []
    for variant in composer.variants:
        prompts = clip.texts([describe(variant.product.subject_class, scene) for scene in SCENE_NAMES])
        for number in (0, 3, 7):
            pixels = composer.compose(rng, variant, SCENE_NAMES[number])[0]
            right.append(int((clip.images([Image.fromarray(pixels)]) @ prompts.T).argmax()) == number)
    assert np.mean(right) >= 0.8


def test_dinov2_knows_held_out_products_again(composer: Composer) -> None:
    dino = load_scorer(MODEL).dino
    assert dino is not None
    rng = np.random.default_rng(2)
    alone = to_tensor([composer.compose(rng, v, None)[0] for v in composer.variants])
    placed = to_tensor([composer.compose(rng, v, "beach")[0] for v in composer.variants])
    first, second = (torch.nn.functional.normalize(dino.cls(pixels), dim=-1) for pixels in (alone, placed))
    found = (second @ first.T).argmax(1)
    assert (found == torch.arange(len(found))).float().mean() >= 0.7
