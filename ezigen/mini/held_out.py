"""One adapter of the embedded model on products it never saw: the measures of `ezigen.mini.evaluate` in one mode."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ezigen.config import EvaluationConfig, ModelConfig
from ezigen.metrics import load_scorer
from ezigen.mini import weights_folder
from ezigen.mini.evaluate import Outcome, generate_all, make_cases, measure, summarize
from ezigen.mini.recipe.judge import Bench
from ezigen.mini.world.benchmarks import PRODUCTS
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.sampling import load_generator


@dataclass(frozen=True)
class HeldOutResult:
    """figures: measure -> mean and the ends of its 95 % bootstrap interval over products. outcomes: every image."""

    figures: dict[str, tuple[float, float, float]]
    outcomes: tuple[Outcome, ...]


def judge_file() -> Path:
    """The weights of the judge, which were trained on renders of the held-out products alone."""
    return weights_folder() / "judge" / "judge.safetensors"


def num_images(config: EvaluationConfig) -> int:
    """How many images are made."""
    return config.num_products * min(4, len(SCENE_NAMES)) * config.num_seeds


def evaluate_held_out(model: ModelConfig, config: EvaluationConfig, tell: Callable[[int], None]) -> HeldOutResult:
    """Generates and measures; `tell` is called with the number of images made so far, and may raise to end it."""
    cases = make_cases(PRODUCTS[: config.num_products], SCENE_NAMES, config.num_seeds)
    generator = load_generator(model, config.sampler())
    made = generate_all(generator, cases, lambda text: tell(int(text.split()[0])))
    images: dict[str, list[Image.Image]] = {config.mode: [pictures[-1] for pictures in made]}
    scorer = load_scorer(ModelConfig(model=model.model, device=model.device, face_encoder=config.face_encoder))
    outcomes = measure(Bench(judge_file()), scorer, cases, images)
    return HeldOutResult(summarize(outcomes)[config.mode], tuple(outcomes))
