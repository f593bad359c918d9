"""Train the embedded model: `python -m ezigen.mini.recipe all --preset cpu --work build/mini`.

Phases in order: fetch, vae, latents, unet, adapters, joint, decoder, clip, dinov2, judge, package. Each goes on where
it was stopped and adds nothing when its time is used; clip, dinov2 and judge need the pictures alone, so they can run
beside the others in a second process. With `--from-weights` a phase begins with the packaged weights: `latents` and
`joint` then train the shipped denoiser and adapters further.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from ezigen.mini import weights_folder
from ezigen.mini.recipe.adapters import train_adapters
from ezigen.mini.recipe.clip import train_clip
from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.dinov2 import train_dinov2
from ezigen.mini.recipe.fetch import PACKAGE, fetch_pictures
from ezigen.mini.recipe.joint import train_jointly
from ezigen.mini.recipe.judge import train_judge
from ezigen.mini.recipe.latents import write_latents
from ezigen.mini.recipe.package import package_weights, unpack_weights
from ezigen.mini.recipe.presets import PRESETS
from ezigen.mini.recipe.unet import train_unet
from ezigen.mini.recipe.vae import polish_decoder, train_vae

PHASES: dict[str, Callable[[RecipeConfig], object]] = {
    "vae": train_vae,
    "latents": write_latents,
    "unet": train_unet,
    "adapters": train_adapters,
    "joint": train_jointly,
    "decoder": polish_decoder,
    "clip": train_clip,
    "dinov2": train_dinov2,
    "judge": train_judge,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ezigen.mini.recipe", description=__doc__)
    parser.add_argument("phases", nargs="+", metavar="phase", choices=["all", "fetch", *PHASES, "package"])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--work", type=Path, default=Path("build/mini"), help="checkpoints, latents, sample sheets")
    parser.add_argument("--source", default=PACKAGE, help="address or local file of the npm package")
    parser.add_argument("--minutes", type=float, help="training time of the joint phase, instead of the preset's")
    parser.add_argument("--morphs", type=int, help="number of morphs, instead of the preset's")
    parser.add_argument("--latents", type=int, help="number of encoded samples, instead of the preset's")
    parser.add_argument("--pace", type=float, default=1.0, help="factor on the training time of every phase")
    parser.add_argument(
        "--from-weights", action="store_true", help="begin with the packaged weights where the work folder lacks a part"
    )
    parser.add_argument("--target", type=Path, default=weights_folder(), help="where `package` puts the weights")
    return parser


def build_config(args: argparse.Namespace) -> RecipeConfig:
    """The preset, with what the command line says instead."""
    config = PRESETS[args.preset](args.work, args.work / "pictures")
    changes: dict[str, dict[str, float]] = defaultdict(dict)
    for name in ("vae", "unet", "adapter", "joint", "encoders"):
        changes[name]["minutes"] = args.pace * getattr(config, name).minutes
    changes["vae"]["polish_minutes"] = args.pace * config.vae.polish_minutes
    if args.minutes is not None:
        changes["joint"]["minutes"] = args.minutes
    if args.morphs is not None:
        changes["world"]["num_morphs"] = args.morphs
    if args.latents is not None:
        changes["unet"]["num_latents"] = args.latents
    settings = config.model_dump()
    return RecipeConfig.model_validate({**settings, **{k: settings[k] | v for k, v in changes.items()}})


def main(arguments: list[str] | None = None) -> None:
    """Run some phases, or all of them."""
    args = build_parser().parse_args(arguments)
    config = build_config(args)
    torch.set_num_threads(config.threads)
    fetch_pictures(config.world.pictures, args.source)
    if args.from_weights:
        unpack_weights(weights_folder(), config.work)
    if config.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    for name, train in PHASES.items():
        if {name, "all"} & set(args.phases):
            started = time.monotonic()
            train(config)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    if {"package", "all"} & set(args.phases):
        package_weights(config.work, args.target)


if __name__ == "__main__":
    main()
