"""Adapters on disk: adapter.safetensors with a card, and the authors' checkpoint."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ezigen.adapters.attach import AdapterSet
from ezigen.adapters.card import AUTHORS_FILES, CARD_FILE, WEIGHTS_FILE, AdapterCard, find_checkpoint, read_card
from ezigen.config import ConfigurationError
from ezigen.models.location import check_safetensors

_AUTHORS_NAMES = {
    "norm.weight": "adapter_norm.weight",
    "norm.bias": "adapter_norm.bias",
    "to_q.weight": "adapter.to_q.weight",
    "to_k.weight": "adapter.to_k.weight",
    "to_v.weight": "adapter.to_v.weight",
    "to_out.weight": "adapter.to_out.0.weight",
    "to_out.bias": "adapter.to_out.0.bias",
}
"""Names of one adapter's tensors -> their names below a transformer block in the authors' checkpoint."""

_AUTHORS_WEIGHTS = "learnable_weights"


def save_adapter(adapters: AdapterSet, folder: Path | str, card: AdapterCard) -> AdapterCard:
    """Write adapter.safetensors, then card.json, each whole or not at all; returns the card with counts filled in."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapters.tensors().items()}
    extra_residual = adapters[adapters.names[0]].extra_residual
    counts = {"num_adapters": len(adapters), "num_parameters": adapters.num_parameters}
    card = card.model_copy(update={**counts, "extra_residual": extra_residual})
    unfinished = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    save_file(tensors, unfinished)
    unfinished.replace(folder / WEIGHTS_FILE)
    unfinished.write_text(card.model_dump_json(indent=2) + "\n")
    unfinished.replace(folder / CARD_FILE)
    return card


def load_adapter(adapters: AdapterSet, folder: Path | str, *, base_fingerprint: str | None) -> AdapterCard:
    """Fill the adapters from a folder written by `save_adapter` and return its card.

    base_fingerprint is that of the model the adapters are attached to; None skips the comparison. Raises
    ConfigurationError when the card names another base or other settings, or the tensors do not fit.
    """
    folder = Path(folder)
    card = read_card(folder)
    if base_fingerprint and card.base_fingerprint and card.base_fingerprint != base_fingerprint:
        raise ConfigurationError(
            f"adapter {folder}: trained on {card.base_model or 'a model'} with fingerprint {card.base_fingerprint}, "
            f"but this model's is {base_fingerprint}; pass the model it was trained on, or, if you know that they "
            f'agree, set "base_fingerprint" to "" in its {CARD_FILE}'
        )
    if card.extra_residual != adapters[adapters.names[0]].extra_residual:
        raise ConfigurationError(
            f"adapter {folder}: extra_residual is {card.extra_residual}, attached with the opposite"
        )
    _fill(adapters, _read_tensors(folder / WEIGHTS_FILE, set(adapters.tensors())), str(folder))
    return card


def import_checkpoint(folder: Path | str, adapters: AdapterSet) -> AdapterCard:
    """Fill the adapters from the authors' published checkpoint: an accelerate folder or the file in it.

    Only the adapter tensors are used; optimizer and random states are never opened, and a pytorch_model.bin is read as
    bare tensors (weights_only), so nothing in it can run. A checkpoint without `learnable_weights` (older releases)
    means all ones. The returned card says extra_residual, as the released checkpoint was trained: attach with it.
    """
    path = find_checkpoint(Path(folder)) if Path(folder).is_dir() else Path(folder)
    if path is None or not path.is_file():
        raise ConfigurationError(
            f"checkpoint {folder}: no {' or '.join(AUTHORS_FILES)} there; download the whole folder"
        )
    wanted = {
        f"{name}.{theirs}": f"{name}.{ours}" for name in adapters.names for ours, theirs in _AUTHORS_NAMES.items()
    }
    found = _read_tensors(path, {*wanted, _AUTHORS_WEIGHTS})
    weights = found.pop(_AUTHORS_WEIGHTS, torch.ones(len(adapters)))
    if weights.shape != (len(adapters),):
        raise ConfigurationError(
            f"checkpoint {path}: {weights.numel()} {_AUTHORS_WEIGHTS} for {len(adapters)} adapters"
        )
    tensors = {wanted[name]: tensor for name, tensor in found.items()}
    for name, weight in zip(_execution_order(adapters.names), weights, strict=True):
        tensors[f"{name}.subject_weight"] = weight
    _fill(adapters, tensors, str(path))
    return AdapterCard(base_model="the authors' checkpoint", extra_residual=True, num_adapters=len(adapters))


def _execution_order(names: tuple[str, ...]) -> list[str]:
    return sorted(names, key=lambda name: ("down", "mid", "up").index(name.split("_", 1)[0]))


def _read_tensors(path: Path, wanted: set[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    if path.suffix == ".bin":
        return _read_bare_pickle(path, wanted)
    with safe_open(check_safetensors(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name in wanted}  # noqa: SIM118 - not a dict


def _read_bare_pickle(path: Path, wanted: set[str]) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigurationError(f"{path}: not a file of bare tensors, refused: {error}") from error
    return {name: tensor for name, tensor in tensors.items() if name in wanted}


def _fill(adapters: AdapterSet, tensors: Mapping[str, Tensor], source: str) -> None:
    own = adapters.tensors()
    if missing := sorted(set(own) - set(tensors)):
        raise ConfigurationError(f"{source}: {len(missing)} of {len(own)} tensors are missing, e.g. {missing[0]}")
    for name, target in own.items():
        if target.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the model needs {tuple(target.shape)}"
            raise ConfigurationError(f"{source}: {name} has shape {shapes}; it was trained on another model")
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(tensors[name])
