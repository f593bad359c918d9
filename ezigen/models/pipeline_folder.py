"""A text-to-image pipeline of diffusers as files: whether it can be one, and what it is read from. Imports no torch."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ezigen.config import ConfigurationError
from ezigen.models.location import READ, check_safetensors, resolve_folder

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
_FAST = ("turbo", "lightning", "schnell")


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline whose parts are all there, with safetensors in each that has weights."""

    model: str
    """As it was named: a folder or a hub id."""
    role: str
    """What it is used as, for messages: "sketch model"."""
    path: Path
    parts: tuple[str, ...]
    """The folders that are loaded."""
    without: tuple[str, ...] = ()
    """Parts of its index that are not loaded."""

    @property
    def label(self) -> str:
        """As messages call it: sketch model stabilityai/sd-turbo."""
        return f"{self.role} {self.model}"

    @property
    def variant(self) -> str | None:
        """The variant fp16 where there are no other weights; None means the plain ones."""
        names = [path.name for part in self.parts for path in _weights(self.path / part)]
        return "fp16" if names and all(".fp16" in name for name in names) else None

    @property
    def is_fast(self) -> bool:
        """Whether it was distilled to a few steps without guidance: by its name, and FLUX by its configuration."""
        if any(word in Path(self.model).name.lower() for word in _FAST):
            return True
        config = self.path / "transformer" / "config.json"
        return config.is_file() and self._read_json(config).get("guidance_embeds") is False

    @property
    def files(self) -> list[Path]:
        """Everything that its pictures depend on."""
        files = [self.path / "model_index.json"]
        for name in self.parts:
            weights = _weights(self.path / name)
            plain = [path for path in weights if ".fp16" not in path.name]
            files += plain or weights
            files += [path for path in (self.path / name).iterdir() if path.suffix in READ and path not in weights]
        return files

    def config(self, part: str) -> dict[str, Any]:
        """config.json of a part; empty where there is none. Raises ConfigurationError for a broken one."""
        path = self.path / part / "config.json"
        return self._read_json(path) if path.is_file() else {}

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            values = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise ConfigurationError(f"{self.label}: {path} is broken; download it again")
        return values


def find_pipeline(model: str, *, role: str, option: str, without: Collection[str] = ()) -> PipelineFolder:
    """The pipeline of a folder, of a hub id (downloaded if need be), or of "mini".

    role: what messages call it; option: which one of the command line names it; without: parts that are not wanted.
    Raises ConfigurationError, with a remedy, for a missing, incomplete or pickled one.
    """
    path = resolve_folder(model, option=option)
    if not (path / "model_index.json").is_file():
        raise ConfigurationError(
            f"{role} {model}: model_index.json is missing in {path}; it must be a whole text-to-image pipeline "
            "in diffusers format, not one of its parts and not a single file"
        )
    listed = _listed_parts(f"{role} {model}", path)
    folder = PipelineFolder(
        model,
        role,
        path,
        parts=tuple(name for name in listed if name not in without),
        without=tuple(name for name in listed if name in without),
    )
    for part in folder.parts:
        _check_part(folder, path / part)
    return folder


def _check_part(folder: PipelineFolder, part: Path) -> None:
    if not part.is_dir():
        raise ConfigurationError(f"{folder.label}: {part} is missing; download the whole folder again")
    weights = _weights(part)
    pickles = sorted(path.name for path in part.iterdir() if path.suffix in _PICKLES)
    if pickles and not weights:
        raise ConfigurationError(
            f"{folder.label}: {part} has only {', '.join(pickles)}, a pickle, which is never loaded; use a "
            "release with safetensors"
        )
    for path in weights:
        check_safetensors(path)


def _listed_parts(label: str, path: Path) -> list[str]:
    """Names of the folders that the pipeline's index lists. Raises ConfigurationError for an index that is broken, and
    for one that wants code from somewhere.
    """
    try:
        index: Any = json.loads((path / "model_index.json").read_bytes())
        parts = {name: kind for name, kind in index.items() if isinstance(kind, list)}
        known = isinstance(index["_class_name"], str)
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{label}: {path / 'model_index.json'} is broken; download it again") from error
    if not known:
        raise ConfigurationError(
            f"{label}: its pipeline is code of its own, which is never run; use one that diffusers has"
        )
    return [name for name, kind in parts.items() if len(kind) == 2 and kind[0] is not None]


def _weights(part: Path) -> list[Path]:
    return sorted(part.glob("*.safetensors"))
