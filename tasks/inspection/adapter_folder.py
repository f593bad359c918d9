"""An adapter's folder: its card, its fingerprint and its tensors. Reads no weights but the header of their file."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from ezigen.adapters.card import (
    CARD_FILE,
    WEIGHTS_FILE,
    adapter_fingerprint,
    find_checkpoint,
    is_authors_tensor,
    read_card,
)
from ezigen.config import ConfigurationError
from ezigen.models.location import check_safetensors
from tasks.adapters.files import SHEET_FILE
from tasks.inspection.view import SavedPicture, Table, View, settings_facts


def inspect_adapter(folder: Path, uri: str = "", sheet: bytes | None = None) -> View:
    """The card, what tells the adapter from others, its tensors, and the sample sheet that was published with it.

    `uri` is where it is stored, if the folder is a copy of that; `sheet` the JPEG that lies there beside the weights.
    Raises ConfigurationError if the adapter is damaged.
    """
    facts = [
        ("kind", "adapter"),
        ("location", uri or str(folder)),
        ("fingerprint", adapter_fingerprint(str(folder), "")),
    ]
    weights = folder / WEIGHTS_FILE
    if weights.is_file():
        card = read_card(folder)
        if sheet is not None and card.files.get(SHEET_FILE, _sha256(sheet)) != _sha256(sheet):
            raise ConfigurationError(
                f"{uri or folder}: {SHEET_FILE} does not have the checksum in {CARD_FILE}; it was changed or damaged "
                "after it was published."
            )
        facts += [
            ("format", f"{WEIGHTS_FILE} and {CARD_FILE}, version {card.format_version}"),
            ("made for", f"{card.base_model or 'unknown'} {card.base_fingerprint}".strip()),
            ("adapters", f"{card.num_adapters:,} with {card.num_parameters:,} numbers"),
            *([("only in", ", ".join(card.blocks))] if card.blocks else []),
            *([("subject encoder", card.describe_encoder())] if card.subject_encoder != "frozen" else []),
            ("extra residual", "yes, as in the authors' release" if card.extra_residual else "no"),
            *([("published as", f"{card.name}@{card.version}")] if card.version else []),
            *settings_facts("training", card.training),
            *settings_facts("measured", card.metrics),
        ]
        tensors = _read_header(weights)
    else:
        tensors = _authors_tensors(folder, facts)
    rows = tuple((name, entry["dtype"], _shape(entry["shape"])) for name, entry in sorted(tensors.items()))
    pictures = () if sheet is None else (SavedPicture(SHEET_FILE, sheet),)
    tables = (Table("tensors", ("tensor", "type", "shape"), rows),)
    return View(f"adapter at {uri or folder}", tuple(facts), tables, pictures)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shape(lengths: list[int]) -> str:
    return "x".join(map(str, lengths)) or "one number"


def _authors_tensors(folder: Path, facts: list[tuple[str, str]]) -> dict[str, Any]:
    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        raise ConfigurationError(f"{folder}: {WEIGHTS_FILE} is missing; copy the whole adapter folder")
    facts.append(("format", f"the authors' checkpoint, {checkpoint.name}, {checkpoint.stat().st_size:,} bytes"))
    if checkpoint.suffix != ".safetensors":
        facts.append(("tensors", "not listed: the file is a pickle"))
        return {}
    tensors = _read_header(checkpoint)
    used = {name: entry for name, entry in tensors.items() if is_authors_tensor(name)}
    facts.append(("tensors", f"{len(used):,} of the adapters among {len(tensors):,}"))
    return used


def _read_header(path: Path) -> dict[str, Any]:
    check_safetensors(path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header
