"""A learner's state on disk: safetensors and JSON, nothing that could run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ezigen.config import ConfigurationError
from ezigen.models.location import check_safetensors

STATE_FILE = "state.json"
WEIGHTS_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGE_FILE = "ema.safetensors"
FORMAT_VERSION = 1


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as they are, bit by bit."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors on the CPU. Raises ConfigurationError when the file is missing or damaged."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise ConfigurationError(f"checkpoint {path.parent}: {path.name} is missing; use another checkpoint")
    return load_file(check_safetensors(path))


def copy_tensors(source: Path, own: Mapping[str, Tensor]) -> None:
    """Fill `own` from a file that holds exactly these names and shapes."""
    given = read_tensors(source)
    if wrong := sorted(set(given) ^ set(own)):
        verb = "lacks" if wrong[0] in own else "has an extra"
        raise ConfigurationError(f"checkpoint {source.parent}: {source.name} {verb} {wrong[0]}; use another checkpoint")
    for name, target in own.items():
        if target.shape != given[name].shape:
            raise ConfigurationError(
                f"checkpoint {source.parent}: {name} in {source.name} has shape {tuple(given[name].shape)}, the model "
                f"needs {tuple(target.shape)}"
            )
        target.data.copy_(given[name])


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write state.json, which makes the folder a checkpoint: call it last."""
    unfinished = folder / f".{STATE_FILE}"
    unfinished.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
    unfinished.replace(folder / STATE_FILE)


def read_state(folder: Path) -> dict[str, Any]:
    """What state.json says. Raises ConfigurationError when it is missing, damaged or of another format."""
    try:
        state = json.loads((folder / STATE_FILE).read_bytes())
    except FileNotFoundError:
        raise ConfigurationError(f"checkpoint {folder}: {STATE_FILE} is missing; it was not finished") from None
    except ValueError as error:
        raise ConfigurationError(f"checkpoint {folder}: {STATE_FILE} is not JSON: {error}") from error
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        raise ConfigurationError(f"checkpoint {folder}: {STATE_FILE} is not of format {FORMAT_VERSION}")
    return state


def first_difference(stored: Any, wanted: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The dotted name of the first value that differs between two JSON trees, with both values; None if none does."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted({*stored, *wanted}):
            found = first_difference(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if stored == wanted else (name, stored, wanted)
