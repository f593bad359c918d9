"""What is known about a stored adapter, readable without torch."""

import hashlib
from pathlib import Path

from pydantic import Field, ValidationError

from ezigen.config import ConfigurationError
from ezigen.config.base import Config
from ezigen.models.fingerprint import fingerprint_files
from ezigen.models.location import resolve_folder

WEIGHTS_FILE = "adapter.safetensors"
CARD_FILE = "card.json"

AUTHORS_FILES = ("model.safetensors", "pytorch_model.bin")
"""The authors' checkpoint, an accelerate folder, holds the whole UNet under one of these names."""


class AdapterCard(Config):
    """Where an adapter comes from and what it fits; stored as card.json beside adapter.safetensors."""

    format_version: int = Field(default=1, ge=1, le=1, description="Version of the names in adapter.safetensors.")
    base_model: str = Field(default="", description="The model the adapter was trained on, as the user named it.")
    base_fingerprint: str = Field(
        default="",
        description="Fingerprint of that model; another one is refused. Empty: unknown, fits any of its shape.",
    )
    extra_residual: bool = Field(
        default=False, description="h2 = h1 + a + u instead of h1 + a, as in the authors' released checkpoint."
    )
    num_adapters: int = Field(default=0, ge=0, description="Adapters, one per transformer block.")
    num_parameters: int = Field(default=0, ge=0, description="Trained numbers.")
    training: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Facts about the training: data, steps, learning rate, loss, date."
    )


def read_card(folder: Path) -> AdapterCard:
    """The card of an adapter folder. Raises ConfigurationError when it is missing or not a card."""
    path = folder / CARD_FILE
    try:
        return AdapterCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigurationError(f"adapter {folder}: {CARD_FILE} is missing; copy the whole adapter folder") from None
    except ValidationError as error:
        raise ConfigurationError(f"adapter {folder}: {CARD_FILE} is not an adapter card: {error}") from error


def resolve_adapter(location: str, model: str) -> Path | None:
    """The folder that an adapter setting means for this model; None for "none". Imports no torch.

    "auto" is the adapter shipped with "mini". Raises ConfigurationError when there is no such folder.
    """
    if location == "none":
        return None
    if location == "auto":
        if model != "mini":
            raise ConfigurationError(
                f"adapter auto: none is shipped for model {model}; pass --adapter with a folder that holds "
                f"{WEIGHTS_FILE} and {CARD_FILE}, or the authors' checkpoint ({AUTHORS_FILES[0]})"
            )
        return resolve_folder("mini", "adapter")
    folder = Path(location).expanduser()
    if not (folder / WEIGHTS_FILE).is_file() and find_checkpoint(folder) is None:
        raise ConfigurationError(
            f"adapter {location}: no folder with {WEIGHTS_FILE}, or {' or '.join(AUTHORS_FILES)} of the authors, in it"
        )
    return folder


def find_checkpoint(folder: Path) -> Path | None:
    """The authors' checkpoint in a folder, safetensors first."""
    return next((folder / name for name in AUTHORS_FILES if (folder / name).is_file()), None)


def adapter_fingerprint(location: str, model: str = "mini") -> str:
    """32 hex digits of what an adapter does: its weights and how they are used; zeros for "none". Imports no torch."""
    folder = resolve_adapter(location, model)
    if folder is None:
        return "0" * 32
    if not (folder / WEIGHTS_FILE).is_file() and (checkpoint := find_checkpoint(folder)):
        return fingerprint_files(folder, [checkpoint])
    weights = fingerprint_files(folder, [folder / WEIGHTS_FILE])
    # What else the card tells (who trained it, when) changes no image.
    return hashlib.blake2b(f"{weights}|{read_card(folder).extra_residual}".encode(), digest_size=16).hexdigest()
