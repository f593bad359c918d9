"""Adapters on disk: adapter.safetensors with a card, and the authors' checkpoint."""

import os
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ezigen.adapters.attach import AdapterSet
from ezigen.adapters.card import (
    AUTHORS_FILES,
    AUTHORS_WEIGHTS,
    CARD_FILE,
    WEIGHTS_FILE,
    AdapterCard,
    check_base,
    find_checkpoint,
    is_authors_tensor,
    read_card,
)
from ezigen.config import ConfigurationError
from ezigen.models.location import check_safetensors
from ezigen.subject.learned import ImageSource, ProjectedTokens

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


_SUBJECT_WEIGHTS = "subject_weights"
_SUBJECT_WEIGHT = ".subject_weight"
_FORMAT_VERSION = 2
_MAX_NAMED = 3


def save_adapter(adapters: AdapterSet, folder: Path | str, card: AdapterCard) -> AdapterCard:
    """Write adapter.safetensors, then card.json, each whole or not at all; returns the card with counts filled in.

    Seven tensors per adapter and `subject_weights`, the scalars of all adapters in order of execution: 113 tensors for
    SD2.1-base.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in adapters.tensors().items()
        if not name.endswith(_SUBJECT_WEIGHT)
    }
    order = _execution_order(adapters.names)
    tensors[_SUBJECT_WEIGHTS] = torch.stack([adapters[name].subject_weight.detach().cpu() for name in order])
    card = card.model_copy(
        update={
            "format_version": _FORMAT_VERSION,
            "num_adapters": len(adapters),
            "num_parameters": adapters.num_parameters,
            "extra_residual": adapters[adapters.names[0]].extra_residual,
            "blocks": adapters.names if adapters.num_skipped else (),
            "subject_encoder": adapters.subject_encoder_kind,
            **_image_source(adapters),
        }
    )
    unfinished = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    save_file(tensors, unfinished)
    unfinished.replace(folder / WEIGHTS_FILE)
    unfinished.write_text(card.model_dump_json(indent=2) + "\n")
    unfinished.replace(folder / CARD_FILE)
    return card


def load_adapter(adapters: AdapterSet, folder: Path | str, *, base_fingerprint: str | None) -> AdapterCard:
    """Fill the adapters from a folder written by `save_adapter` (or by its first format) and return its card.

    base_fingerprint is that of the model the adapters are attached to; None skips the comparison. Raises
    ConfigurationError when the card names another base or other settings, or a tensor is missing, extra or unsuitable.
    """
    folder = Path(folder)
    card = read_card(folder)
    check_base(card, base_fingerprint or "", str(folder))
    if card.extra_residual != adapters[adapters.names[0]].extra_residual:
        raise ConfigurationError(
            f"adapter {folder}: extra_residual is {card.extra_residual}, attached with the opposite"
        )
    if set(card.blocks or adapters.names) != set(adapters.names) or bool(card.blocks) != bool(adapters.num_skipped):
        there = f"the {len(card.blocks)} blocks {_name_some(card.blocks)}" if card.blocks else "all blocks"
        raise ConfigurationError(
            f"adapter {folder}: made for {there}, attached to {len(adapters)}: {_name_some(adapters.names)}; attach it "
            "to the blocks of its card"
        )
    _check_subject_encoder(adapters, card, str(folder))
    path = folder / WEIGHTS_FILE
    found = _read_tensors(path)
    wanted = set(adapters.tensors())
    if _SUBJECT_WEIGHTS in found or card.format_version > 1:
        wanted = {name for name in wanted if not name.endswith(_SUBJECT_WEIGHT)} | {_SUBJECT_WEIGHTS}
    _check_names(found, wanted, str(path))
    if _SUBJECT_WEIGHTS in wanted:
        found |= _split_weights(found.pop(_SUBJECT_WEIGHTS), adapters.names, f"{path}: {_SUBJECT_WEIGHTS}")
    _fill(adapters, found, str(folder))
    return card


def import_checkpoint(folder: Path | str, adapters: AdapterSet) -> AdapterCard:
    """Fill the adapters from the authors' published checkpoint: an accelerate folder or the file in it.

    Only the adapter tensors are used; optimizer and random states are never opened, and a pytorch_model.bin is read as
    bare tensors (weights_only), so nothing in it can run. A checkpoint without `learnable_weights` (older releases)
    means all ones. Raises ConfigurationError, naming it, for a tensor that is missing or that belongs to an adapter
    the model has not; the rest of the file, the whole UNet, is expected and left alone. The returned card says
    extra_residual, as the released checkpoint was trained: attach with it.
    """
    path = find_checkpoint(Path(folder)) if Path(folder).is_dir() else Path(folder)
    if path is None or not path.is_file():
        raise ConfigurationError(
            f"checkpoint {folder}: no {' or '.join(AUTHORS_FILES)} there; download the whole folder"
        )
    wanted = {
        f"{name}.{theirs}": f"{name}.{ours}" for name in adapters.names for ours, theirs in _AUTHORS_NAMES.items()
    }
    found = _read_tensors(path, is_authors_tensor)
    weights = found.pop(AUTHORS_WEIGHTS, torch.ones(len(adapters)))
    _check_names(found, set(wanted), f"checkpoint {path}")
    tensors = {wanted[name]: tensor for name, tensor in found.items()}
    tensors |= _split_weights(weights, adapters.names, f"checkpoint {path}: {AUTHORS_WEIGHTS}")
    _fill(adapters, tensors, str(path))
    return AdapterCard(base_model="the authors' checkpoint", extra_residual=True, num_adapters=len(adapters))


def _image_source(adapters: AdapterSet) -> dict[str, str]:
    """The fields of a card that say which image encoder sees the subjects; empty where none does."""
    encoder = adapters.subject_encoder
    source = encoder.source if isinstance(encoder, ProjectedTokens) else ImageSource("", "")
    return {"image_encoder": source.location, "image_encoder_fingerprint": source.fingerprint}


def _check_subject_encoder(adapters: AdapterSet, card: AdapterCard, source: str) -> None:
    if card.subject_encoder != adapters.subject_encoder_kind:
        raise ConfigurationError(
            f"adapter {source}: trained with subject_encoder {card.subject_encoder}, attached with "
            f"{adapters.subject_encoder_kind}; attach it with that of its card"
        )
    known, ours = card.image_encoder_fingerprint, _image_source(adapters)["image_encoder_fingerprint"]
    if known and known != ours:
        raise ConfigurationError(
            f"adapter {source}: trained with the image encoder {card.image_encoder} of fingerprint {known}, but this "
            f"one's is {ours}; set image_encoder in its {CARD_FILE} to where that one is"
        )


def _split_weights(weights: Tensor, names: tuple[str, ...], source: str) -> dict[str, Tensor]:
    """The scalars of a vector (adapters,) in order of execution, by the name of each one's parameter."""
    if weights.shape != (len(names),):
        raise ConfigurationError(f"{source} has shape {tuple(weights.shape)}, the model has {len(names)} adapters")
    order = _execution_order(names)
    return {f"{name}{_SUBJECT_WEIGHT}": weight for name, weight in zip(order, weights, strict=True)}


def _check_names(found: Collection[str], wanted: Collection[str], source: str) -> None:
    """Raise ConfigurationError that names the tensors which are missing and those that no adapter has."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    wrong = [f"{len(missing)} of {len(wanted)} tensors are missing: {_name_some(missing)}"] if missing else []
    wrong += [f"{len(extra)} belong to no adapter of this model: {_name_some(extra)}"] if extra else []
    if wrong:
        raise ConfigurationError(f"{source}: {'; '.join(wrong)}. It is incomplete, or of another model.")


def _name_some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"


def _execution_order(names: tuple[str, ...]) -> list[str]:
    return sorted(names, key=lambda name: ("down", "mid", "up").index(name.split("_", 1)[0]))


def _read_tensors(path: Path, is_wanted: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
    from safetensors import safe_open

    if path.suffix == ".bin":
        return _read_bare_pickle(path, is_wanted)
    with safe_open(check_safetensors(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if is_wanted(name)}  # noqa: SIM118 - not a dict


def _read_bare_pickle(path: Path, is_wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigurationError(f"{path}: not a file of bare tensors, refused: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ConfigurationError(f"{path}: not a file of tensors by name, refused; give the checkpoint of the UNet")
    return {name: tensor for name, tensor in tensors.items() if is_wanted(name)}


def _fill(adapters: AdapterSet, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors of exactly the adapters' names, all or none of them."""
    own = adapters.tensors()
    for name, target in own.items():
        if target.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the model needs {tuple(target.shape)}"
            raise ConfigurationError(f"{source}: {name} has shape {shapes}; it was trained on another model")
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(tensors[name])
