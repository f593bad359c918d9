"""What is known about a stored adapter, readable without torch."""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ezigen.config import ConfigurationError, SamplerConfig, SubjectEncoderKind
from ezigen.config.base import Config
from ezigen.models.fingerprint import fingerprint_files
from ezigen.models.location import resolve_folder

WEIGHTS_FILE = "adapter.safetensors"
CARD_FILE = "card.json"

AUTHORS_FILES = ("model.safetensors", "pytorch_model.bin")
"""The authors' checkpoint, an accelerate folder, holds the whole UNet under one of these names."""

AUTHORS_WEIGHTS = "learnable_weights"
"""Its one tensor that belongs to all adapters: their subject weights in order of execution."""


class AdapterCard(Config):
    """Where an adapter comes from and what it fits; stored as card.json beside adapter.safetensors."""

    format_version: int = Field(
        default=1,
        ge=1,
        le=2,
        description="Names in adapter.safetensors. 1: the subject weight of every adapter by itself; 2: all of them as "
        "one tensor, in order of execution.",
    )
    base_model: str = Field(default="", description="The model the adapter was trained on, as the user named it.")
    base_fingerprint: str = Field(
        default="",
        description="Fingerprint of that model; another one is refused. Empty: unknown, fits any of its shape.",
    )
    extra_residual: bool = Field(
        default=False, description="h2 = h1 + a + u instead of h1 + a, as in the authors' released checkpoint."
    )
    blocks: tuple[str, ...] = Field(
        default=(), description="Names of the transformer blocks that carry an adapter; empty: all of the model's."
    )
    subject_encoder: SubjectEncoderKind = Field(
        default="frozen",
        description="What encodes the subjects: the frozen UNet, or what was trained with the adapters and is stored "
        "with them: a copy of the UNet, or projectors of an image encoder's tokens.",
    )
    image_encoder: str = Field(default="", description="Where that image encoder is: mini, a folder or a hub id.")
    image_encoder_fingerprint: str = Field(
        default="", description="Fingerprint of that image encoder; another one is refused. Empty: unknown."
    )
    num_adapters: int = Field(default=0, ge=0, description="Adapters, one per transformer block.")
    num_parameters: int = Field(default=0, ge=0, description="Trained numbers.")
    training: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Facts about the training: data, steps, learning rate, loss, date."
    )
    name: str = Field(default="", description="Name under which it was published; empty for one that was not.")
    version: str = Field(default="", description="Its version: v1, v2, ...")
    created_at: str = Field(default="", description="When that version was made, ISO 8601 in UTC.")
    run: str = Field(default="", description="Digest of what made it: publishing that again gives the same version.")
    weights_sha256: str = Field(default="", description="SHA-256 of adapter.safetensors.")
    files: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of the other files of the version, by path within it."
    )
    data: dict[str, str | int | float] = Field(
        default_factory=dict, description="What it learned from: digests of features and pairs, numbers of samples."
    )
    configuration: dict[str, Any] = Field(default_factory=dict, description="The training configuration.")
    metrics: dict[str, float] = Field(default_factory=dict, description="What was measured on held-out pairs.")

    def describe_encoder(self) -> str:
        """What encodes the subjects, in words."""
        return {
            "frozen": "the frozen UNet",
            "trained": "a trained copy of the UNet, stored with the adapters",
        }.get(self.subject_encoder, f"{self.subject_encoder} {self.image_encoder} with trained projectors")


def read_card(folder: Path) -> AdapterCard:
    """The card of an adapter folder. Raises ConfigurationError when it is missing or not a card."""
    path = folder / CARD_FILE
    try:
        return AdapterCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigurationError(f"adapter {folder}: {CARD_FILE} is missing; copy the whole adapter folder") from None
    except ValidationError as error:
        raise ConfigurationError(f"adapter {folder}: {CARD_FILE} is not an adapter card: {error}") from error


def check_base(card: AdapterCard, base_fingerprint: str, source: str) -> None:
    """Raise ConfigurationError if the adapter was trained on another model than the one with this fingerprint.

    An unknown fingerprint ("" on either side) fits; `source` names the adapter in the message.
    """
    if base_fingerprint and card.base_fingerprint and card.base_fingerprint != base_fingerprint:
        raise ConfigurationError(
            f"adapter {source}: trained on {card.base_model or 'a model'} with fingerprint {card.base_fingerprint}, "
            f"but this model's is {base_fingerprint}; pass the model it was trained on, or, if you know that they "
            f'agree, set "base_fingerprint" to "" in its {CARD_FILE}'
        )


def check_subject_encoder(kind: SubjectEncoderKind, sampler: SamplerConfig, source: str) -> None:
    """Raise ConfigurationError if the sampler wants of a subject encoder what it cannot do; `source` names its adapter.

    An image encoder has no timestep, so only the default says nothing wrong.
    """
    if kind in ("dino", "clip") and sampler.mode != "text_only" and sampler.t_sub != 1:
        raise ConfigurationError(
            f"sampler.t_sub {sampler.t_sub}: {source} encodes subjects by {kind}, which knows no timestep; leave "
            "sampler.t_sub at 1"
        )


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
            f"adapter {location}: no folder with {WEIGHTS_FILE}, or {' or '.join(AUTHORS_FILES)} of the authors, in "
            "it; a published adapter is written NAME@ALIAS or NAME@VERSION"
        )
    return folder


def find_checkpoint(folder: Path) -> Path | None:
    """The authors' checkpoint in a folder, safetensors first."""
    return next((folder / name for name in AUTHORS_FILES if (folder / name).is_file()), None)


def is_authors_tensor(name: str) -> bool:
    """Whether a tensor of the authors' checkpoint belongs to the adapters; the others are the frozen UNet."""
    return ".adapter." in name or ".adapter_norm." in name or name == AUTHORS_WEIGHTS


def adapter_fingerprint(location: str, model: str = "mini") -> str:
    """32 hex digits of what an adapter does: its weights and how they are used; zeros for "none". Imports no torch."""
    folder = resolve_adapter(location, model)
    if folder is None:
        return "0" * 32
    if not (folder / WEIGHTS_FILE).is_file() and (checkpoint := find_checkpoint(folder)):
        return fingerprint_files(folder, [checkpoint])
    weights = fingerprint_files(folder, [folder / WEIGHTS_FILE])
    # What else the card tells (who trained it, when) changes no image.
    card = read_card(folder)
    used = f"{weights}|{card.extra_residual}"
    if card.subject_encoder != "frozen":
        used += f"|{card.subject_encoder}|{card.image_encoder_fingerprint}"
    return hashlib.blake2b(used.encode(), digest_size=16).hexdigest()
