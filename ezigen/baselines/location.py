"""Which files another method is, whether they can be one, and what tells it from others. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ezigen.config import BaselineConfig, ConfigurationError
from ezigen.config.base import digest_values
from ezigen.models.fingerprint import fingerprint_files
from ezigen.models.location import READ, check_safetensors, resolve_folder
from ezigen.models.pipeline_folder import PipelineFolder, find_pipeline

EXAMPLE_IP_ADAPTER = "h94/IP-Adapter"
MAKER_VERSION = 1
"""Raised when a change of the code makes other images of the same weights and settings."""

_FOLDERS = {False: "models", True: "sdxl_models"}
_FILES = {False: "ip-adapter_sd15.safetensors", True: "ip-adapter_sdxl.safetensors"}
"""In the layout of h94/IP-Adapter, by whether the pipeline is an XL."""
_ENCODER = "image_encoder"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OPTION = "--baseline NAME="


@dataclass(frozen=True)
class IPAdapterFiles:
    """The weights of an IP-Adapter, and the folder of the CLIP that looks at pictures for it."""

    label: str
    weights: Path
    encoder: Path


@dataclass(frozen=True)
class BaselineFiles:
    """Everything that a baseline is loaded from."""

    pipeline: PipelineFolder
    ip_adapter: IPAdapterFiles | None


def find_baseline(config: BaselineConfig) -> BaselineFiles:
    """The files of a baseline, downloaded if need be.

    Raises ConfigurationError, with a remedy, for what is missing, incomplete or a pickle, and for an IP-Adapter that
    belongs to another pipeline.
    """
    # No image of the adapter's goes through a safety checker either: what it hides would count as missing.
    pipeline = find_pipeline(config.pipeline, role="baseline", option=_OPTION, without=("safety_checker",))
    return BaselineFiles(pipeline, _find_ip_adapter(config.ip_adapter, pipeline) if config.ip_adapter else None)


def baseline_fingerprint(config: BaselineConfig) -> str:
    """32 hex digits of all that an image depends on beside its prompt, seed and pictures: files and settings.

    Equal wherever the files lie. Raises ConfigurationError like `find_baseline`. Reads every file once (about 1 s per
    GB).
    """
    files = find_baseline(config)
    unused = set() if config.ip_adapter else {"ip_adapter_scale"}
    values = {
        "version": MAKER_VERSION,
        "config": config.model_dump(mode="json", exclude={"pipeline", "ip_adapter", *unused}),
        "fast": files.pipeline.is_fast,
        "pipeline": fingerprint_files(files.pipeline.path, files.pipeline.files),
        "ip_adapter": [],
    }
    if files.ip_adapter is not None:
        weights, encoder = files.ip_adapter.weights, files.ip_adapter.encoder
        read = [path for path in encoder.iterdir() if path.suffix in READ]
        values["ip_adapter"] = [fingerprint_files(weights.parent, [weights]), fingerprint_files(encoder, read)]
    return digest_values(values)


def _find_ip_adapter(location: str, pipeline: PipelineFolder) -> IPAdapterFiles:
    label, unet = f"IP-Adapter {location}", pipeline.config("unet")
    if not unet:
        raise ConfigurationError(f"{label}: {pipeline.model} has no UNet; use Stable Diffusion 1.x or XL with it")
    weights = _find_weights(label, location, is_xl=unet.get("addition_embed_type") == "text_time")
    shapes = _shapes(check_safetensors(weights))
    width = next((shape[-1] for name, shape in shapes.items() if name.endswith(".to_k_ip.weight")), 0)
    if width != unet.get("cross_attention_dim"):
        raise ConfigurationError(
            f"{label}: {weights.name} is for texts of {width} channels, those of {pipeline.model} have "
            f"{unet.get('cross_attention_dim')}; take the pipeline that it was trained for"
        )
    return IPAdapterFiles(label, weights, _find_encoder(label, weights, shapes))


def _find_weights(label: str, location: str, *, is_xl: bool) -> Path:
    path = Path(location).expanduser()
    if path.suffix in _PICKLES:
        raise ConfigurationError(f"{label}: a pickle, which is never loaded; {_remedy()}")
    if path.suffix == ".safetensors":
        return path
    name = f"{_FOLDERS[is_xl]}/{_FILES[is_xl]}"
    folder = resolve_folder(
        location,
        option=f"{_OPTION}PIPELINE,",
        example=EXAMPLE_IP_ADAPTER,
        wanted=(name, f"{_FOLDERS[is_xl]}/{_ENCODER}/*.json", f"{_FOLDERS[is_xl]}/{_ENCODER}/model.safetensors"),
    )
    if not (folder / name).is_file():
        pickle = (folder / name).with_suffix(".bin")
        found = f"only {pickle.name}, a pickle, which is never loaded" if pickle.is_file() else "nothing"
        raise ConfigurationError(
            f"{label}: {name} is missing in {folder}, found {found}; name the .safetensors file itself, or {_remedy()}"
        )
    return folder / name


def _find_encoder(label: str, weights: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """The CLIP beside the weights, or the one in models/, which some files for XL take: by what it gives them."""
    field, width = _wants(label, weights, shapes)
    folders = [folder / _ENCODER for folder in (weights.parent, weights.parent.parent / _FOLDERS[False])]
    there = [folder for folder in dict.fromkeys(folders) if (folder / "config.json").is_file()]
    if not there:
        raise ConfigurationError(f"{label}: {folders[0]}/config.json is missing; {_remedy()}")
    widths = {folder: json.loads((folder / "config.json").read_bytes()).get(field) for folder in there}
    fitting = [folder for folder in there if widths[folder] == width]
    if not fitting:
        found = ", ".join(f"{folder} has {widths[folder]}" for folder in there)
        raise ConfigurationError(
            f"{label}: {weights.name} takes an image encoder with a {field} of {width}, but {found}; {_remedy()}"
        )
    encoder = fitting[0]
    files = sorted(encoder.glob("*.safetensors"))
    if not files:
        pickles = ", ".join(sorted(path.name for path in encoder.iterdir() if path.suffix in _PICKLES))
        found = f"only {pickles}, a pickle, which is never loaded" if pickles else "nothing"
        raise ConfigurationError(f"{label}: {encoder} has no safetensors, found {found}; {_remedy()}")
    for path in files:
        check_safetensors(path)
    return encoder


def _wants(label: str, weights: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    """What the weights take of an image encoder: the field of its configuration, and its value."""
    if shape := shapes.get("image_proj.proj.weight"):  # the projected vector
        return "projection_dim", shape[-1]
    if shape := shapes.get("image_proj.proj_in.weight"):  # "plus": the patches
        return "hidden_size", shape[-1]
    if "image_proj.proj.3.weight" in shapes:  # "full": the patches
        return "hidden_size", shapes["image_proj.proj.0.weight"][-1]
    raise ConfigurationError(
        f"{label}: {weights.name} is no IP-Adapter that takes pictures (image_proj is missing, or takes faces alone); "
        f"{_remedy()}"
    )


def _shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(weights, framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _remedy() -> str:
    return (
        f"`hf download {EXAMPLE_IP_ADAPTER} --local-dir ip-adapter` where there is a network has safetensors and their "
        f"image encoders; then pass {_OPTION}PIPELINE,ip-adapter"
    )
