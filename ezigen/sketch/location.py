"""Which files a sketch model is, whether they can be one, and what tells them from others. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from ezigen.config import ConfigurationError, SamplerConfig, SketchConfig
from ezigen.config.base import digest_values
from ezigen.models.fingerprint import fingerprint_files
from ezigen.models.location import check_safetensors, find_weights, resolve_folder

OPTION = "--sketch-model"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
_FAST = ("turbo", "lightning", "schnell")
_READ = (".json", ".txt", ".model", ".safetensors")


def find_pipeline(model: str) -> Path:
    """The folder of a diffusers pipeline, downloaded if need be, with safetensors in every part that has weights.

    Raises ConfigurationError, with a remedy, for a missing, incomplete or pickled one.
    """
    folder = resolve_folder(model, option=OPTION)
    if not (folder / "model_index.json").is_file():
        raise ConfigurationError(
            f"sketch model {model}: model_index.json is missing in {folder}; it must be a whole text-to-image pipeline "
            "in diffusers format, not one of its parts and not a single file"
        )
    for name in pipeline_parts(model, folder):
        part = folder / name
        if not part.is_dir():
            raise ConfigurationError(f"sketch model {model}: {part} is missing; download the whole folder again")
        weights = _weights(part)
        pickles = sorted(path.name for path in part.iterdir() if path.suffix in _PICKLES)
        if pickles and not weights:
            raise ConfigurationError(
                f"sketch model {model}: {part} has only {', '.join(pickles)}, a pickle, which is never loaded; use a "
                "release with safetensors"
            )
        for path in weights:
            check_safetensors(path)
    return folder


def pipeline_parts(model: str, folder: Path) -> list[str]:
    """Names of the folders that the pipeline's index lists. Raises ConfigurationError for an index that is broken, and
    for one that wants code from somewhere.
    """
    try:
        index: Any = json.loads((folder / "model_index.json").read_bytes())
        parts = {name: kind for name, kind in index.items() if isinstance(kind, list)}
        known = isinstance(index["_class_name"], str)
    except (ValueError, KeyError, AttributeError) as error:
        message = f"sketch model {model}: {folder / 'model_index.json'} is broken; download it again"
        raise ConfigurationError(message) from error
    if not known:
        raise ConfigurationError(
            f"sketch model {model}: its pipeline is code of its own, which is never run; use one that diffusers has"
        )
    return [name for name, kind in parts.items() if len(kind) == 2 and kind[0] is not None]


def variant_of(model: str, folder: Path) -> str | None:
    """The variant fp16 where there are no other weights; None means the plain ones."""
    files = [path.name for name in pipeline_parts(model, folder) for path in _weights(folder / name)]
    return "fp16" if files and all(".fp16" in name for name in files) else None


def is_fast(model: str, folder: Path) -> bool:
    """Whether it was distilled to a few steps without guidance: by its name, and FLUX by its configuration."""
    if any(word in Path(model).name.lower() for word in _FAST):
        return True
    config = folder / "transformer" / "config.json"
    try:
        return config.is_file() and json.loads(config.read_bytes()).get("guidance_embeds") is False
    except (ValueError, AttributeError) as error:
        raise ConfigurationError(f"sketch model {model}: {config} is broken; download it again") from error


def sketch_fingerprint(config: SketchConfig, sampler: SamplerConfig) -> str:
    """32 hex digits of all that a drawn picture, and what becomes of it, depend on beside the row and what every image
    depends on: the pipeline's files, SAM's, the configuration and the sampler's `edit`. "" without a sketch model.

    Raises ConfigurationError like `find_pipeline`. Reads every file once (about 1 s per GB).
    """
    if not config.draws:
        return ""
    folder = find_pipeline(config.model)
    values = {
        "config": config.model_dump(mode="json", exclude={"model", "sam_model"}),
        "fast": is_fast(config.model, folder),
        "model": fingerprint_files(folder, _files_read(config.model, folder)),
        "sam": "",
        "edit": sampler.edit.digest(),
    }
    if config.region == "sam":
        sam = find_sam(config.sam_model)
        values["sam"] = fingerprint_files(sam, [path for path in sam.iterdir() if path.suffix in _READ])
    return digest_values(values)


def check_sketch(config: SketchConfig, sampler: SamplerConfig) -> None:
    """Raise ConfigurationError where a sketch model contradicts the sampler."""
    if config.draws and sampler.mode == "text_only":
        raise ConfigurationError(
            "mode text_only transfers nothing into a sketch model's pictures; use another mode, or no sketch model"
        )


def find_sam(model: str) -> Path:
    """The folder of a SAM. Raises ConfigurationError."""
    folder = resolve_folder(model, option="--set model.sketch.sam_model")
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"SAM {model}: config.json is missing in {folder}; for example facebook/sam-vit-base")
    find_weights(folder, "sam")
    return folder


def _files_read(model: str, folder: Path) -> list[Path]:
    files = [folder / "model_index.json"]
    for name in pipeline_parts(model, folder):
        weights = _weights(folder / name)
        plain = [path for path in weights if ".fp16" not in path.name]
        files += plain or weights
        files += [path for path in (folder / name).iterdir() if path.suffix in _READ and path not in weights]
    return files


def _weights(part: Path) -> list[Path]:
    return sorted(part.glob("*.safetensors"))
