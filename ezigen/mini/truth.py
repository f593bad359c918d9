"""What the world knows of an image: whether a judge sees the right product in the right scene."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ezigen.mini import weights_folder
from ezigen.mini.recipe.judge import Bench
from ezigen.mini.world.scenes import SCENE_NAMES


@dataclass(frozen=True)
class Truth:
    """What an image has to show: a product by its name, in one of its hues (the variant's key), in a scene."""

    product: str
    variant: str
    scene: str

    @classmethod
    def of_benchmark(cls, subject_id: str, prompt_id: str) -> "Truth":
        """That of a case of the miniature DreamBench; see `ezigen.mini.world.benchmarks`."""
        product = subject_id.replace("_", " ")
        scene = SCENE_NAMES[int(prompt_id.removeprefix("p")) % len(SCENE_NAMES)]
        return cls(product, f"{product}/0", scene)


def judge_file() -> Path:
    """The weights of the judge, which were trained on renders of the held-out products alone."""
    return weights_folder() / "judge" / "judge.safetensors"


def judge_scores(bench: Bench, image: Image.Image, truth: Truth) -> dict[str, float]:
    """1 or 0: the judge's first choice of scene, of product (any hue) and of variant is the true one. And
    `scene_margin`: by how many nats the scene of the prompt is likelier than the likeliest other one.
    """
    verdict = bench.look([np.asarray(image.convert("RGB"))])
    scene = SCENE_NAMES[int(verdict.scenes[0].argmax())]
    products = dict.fromkeys(bench.products, 0.0)
    for name, likelihood in zip(bench.products, verdict.variants[0].tolist(), strict=True):
        products[name] += likelihood
    best = max(products, key=lambda name: products[name])
    variant = bench.keys[int(verdict.variants[0].argmax())]
    return {
        "scene": float(scene == truth.scene),
        "product": float(best == truth.product),
        "variant": float(variant == truth.variant),
        "scene_margin": margin(verdict.scenes[0], truth.scene),
    }


def margin(scores: torch.Tensor, scene: str) -> float:
    """How far the score of `scene` lies above the best other one; scores (scenes,) in the order of `SCENE_NAMES`."""
    right = SCENE_NAMES.index(scene)
    others = torch.cat([scores[:right], scores[right + 1 :]])
    return float(scores[right] - others.max())
