"""An adapter that was made elsewhere becomes a version: one of our folders, or the authors' checkpoint."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ezigen.adapters import AdapterCard, read_card
from ezigen.adapters.card import CARD_FILE, WEIGHTS_FILE
from ezigen.config import ConfigurationError, ItemError
from ezigen.images import decode_picture
from tasks.adapters.files import TEMPORARY_PREFIX, file_sha256
from tasks.adapters.location import local_adapter
from tasks.adapters.registry import PublishedAdapter, Registry
from tasks.storage import Locations

if TYPE_CHECKING:
    from ezigen.adapters import AdapterSet

PICTURES = {".jpg", ".jpeg", ".png"}


def import_adapter(
    location: str, name: str, model: str, registry: Registry, *, alias: str = "", locations: Locations | None = None
) -> PublishedAdapter:
    """Checks an adapter against the model it is for, tensor by tensor, and publishes it.

    Importing the same weights again gives the version that they have. The model's weights are not read into memory.
    Raises ConfigurationError, naming tensors that are missing, extra or of another shape.
    """
    folder = local_adapter(location, model, registry.uri, locations)
    if folder is None:
        raise ValueError('adapter "none" is nothing to import')
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as temporary:
        stage = Path(temporary)
        if (folder / WEIGHTS_FILE).is_file():
            card = _take_folder(folder, model, stage)
        else:
            card = _take_checkpoint(folder, model, stage)
        (stage / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n")
        return registry.publish(name, stage, run=f"import {file_sha256(stage / WEIGHTS_FILE)}", alias=alias)


def _take_folder(folder: Path, model: str, stage: Path) -> AdapterCard:
    """Copies one of our folders with its pictures, byte by byte: what was made with it keeps its keys."""
    from ezigen.adapters import load_adapter
    from ezigen.models import model_fingerprint

    fingerprint, card = model_fingerprint(model), read_card(folder)
    adapters = _attach_to_shapes(model, card)
    card = load_adapter(adapters, folder, base_fingerprint=fingerprint)
    for path in folder.iterdir():
        if path.name == WEIGHTS_FILE or (path.suffix.lower() in PICTURES and _is_picture(path)):
            shutil.copyfile(path, stage / path.name)
    counts = {"num_adapters": len(adapters), "num_parameters": adapters.num_parameters}
    return card.model_copy(update={"base_model": card.base_model or model, "base_fingerprint": fingerprint, **counts})


def _is_picture(path: Path) -> bool:
    """Not a link to a private file, which would be published under the name of a picture."""
    try:
        decode_picture(path.read_bytes())
    except (ItemError, OSError):
        return False
    return True


def _take_checkpoint(folder: Path, model: str, stage: Path) -> AdapterCard:
    """Writes the adapters of the authors' checkpoint, which holds the whole UNet, as one of our folders."""
    from ezigen.adapters import import_checkpoint, save_adapter
    from ezigen.models import model_fingerprint

    fingerprint = model_fingerprint(model)
    adapters = _attach_to_shapes(model, AdapterCard(extra_residual=True))
    import_checkpoint(folder, adapters)
    facts: dict[str, str | int | float | bool] = {"imported_from": folder.name}
    return save_adapter(adapters, stage, AdapterCard(base_model=model, base_fingerprint=fingerprint, training=facts))


def _attach_to_shapes(model: str, card: AdapterCard) -> "AdapterSet":
    """Adapters of the model's shapes, as the card describes them, with nothing in them yet. Of the model only the
    UNet's configuration is read.
    """
    import torch
    from diffusers import UNet2DConditionModel

    from ezigen.adapters import add_subject_encoder, attach_adapters
    from ezigen.models.location import check_stack_folder, resolve_folder

    folder = resolve_folder(model)
    check_stack_folder(model, folder)
    config = json.loads((folder / "unet" / "config.json").read_bytes())
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(config)
    try:
        adapters = attach_adapters(unet, extra_residual=card.extra_residual, blocks=card.blocks)
    except ValueError as error:
        raise ConfigurationError(f"model {model}: the adapter does not fit it: {error}") from error
    add_subject_encoder(adapters, unet, card.subject_encoder, location=card.image_encoder)
    return adapters.to_empty(device="cpu")
