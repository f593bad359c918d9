"""Putting the trained parts together as the folder the package ships: a Stable Diffusion folder with `adapter`,
`clip` and `dinov2` beside it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ezigen.models.fingerprint import model_fingerprint

DIFFUSERS_VERSION = "0.42.1"
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": DIFFUSERS_VERSION,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


TEXT_TO_IMAGE = ("unet", "text_encoder", "scheduler")


def halve_weights(source: Path, target: Path) -> None:
    """Copy a safetensors file with its floating-point tensors in fp16; metadata is kept."""
    with safe_open(source, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(source)
    save_file({n: t.half().contiguous() if t.is_floating_point() else t for n, t in tensors.items()}, target, metadata)


def state_dtype(config: Path) -> None:
    """Say float32 in a model's configuration: halved weights are then read back as fp32, not computed in fp16."""
    settings = json.loads(config.read_text("utf-8"))
    settings.pop("torch_dtype", None)
    config.write_text(json.dumps(settings | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n", "utf-8")


def forget_origin(config: Path) -> None:
    """Drop the folder of the machine that a model was loaded from; it would also change the model's fingerprint."""
    if config.is_file():
        settings = json.loads(config.read_text("utf-8"))
        settings.pop("_name_or_path", None)
        config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


def copy_model(source: Path, target: Path) -> None:
    """Copy one model's folder: configurations as they are, weights in fp16."""
    target.mkdir(parents=True)
    for path in sorted(p for p in source.iterdir() if p.is_file()):
        if path.suffix == ".safetensors":
            halve_weights(path, target / path.name)
        elif path.suffix in (".json", ".txt"):
            shutil.copyfile(path, target / path.name)
    forget_origin(target / "config.json")
    if (target / "model.safetensors").is_file():
        state_dtype(target / "config.json")
    for path in target.iterdir():
        path.chmod(0o644)


def sign_adapter(folder: Path) -> None:
    """Write the fingerprint of the packed base into the adapter's card, so that another base is refused."""
    card = folder / "adapter" / "card.json"
    if card.is_file():
        facts = json.loads(card.read_text("utf-8")) | {"base_fingerprint": model_fingerprint(str(folder))}
        card.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def unpack_weights(source: Path, work: Path) -> None:
    """Put the packaged parts under `source` where the phases look for them in `work`; parts already there stay."""
    for name in ("unet", "text_encoder", "scheduler", "tokenizer", "vae", "adapter", "clip", "dinov2", "judge"):
        target = work / "text_to_image" / name if name in TEXT_TO_IMAGE else work / name
        if not target.exists():
            shutil.copytree(source / name, target)


def package_weights(work: Path, target: Path) -> Path:
    """Assemble what is trained so far under `work` and swap it in for `target`, so that a reader never sees half of
    it.
    """
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    stable = work / "text_to_image"
    sources = {name: stable / name for name in TEXT_TO_IMAGE}
    sources |= {"tokenizer": work / "tokenizer", "vae": work / "vae"}
    sources |= {name: work / name for name in ("adapter", "clip", "dinov2", "judge") if (work / name).is_dir()}
    for name, source in sources.items():
        copy_model(source, fresh / name)
    (fresh / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", "utf-8")
    sign_adapter(fresh)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    fresh.replace(target)
    shutil.rmtree(old, ignore_errors=True)
    return target
