"""From an adapter setting to a folder on this machine, and from an alias to the version that a run keeps to."""

from pathlib import Path

from ezigen.adapters import resolve_adapter
from ezigen.config import ModelConfig
from tasks.adapters.cache import check_weights, fetch
from tasks.adapters.reference import is_reference
from tasks.adapters.registry import Registry
from tasks.storage import Locations, OutputFolder, locate

__all__ = ["find_adapter", "is_reference", "local_adapter", "localize_model", "pin_adapter", "pin_model"]


def local_adapter(location: str, model: str, adapters_uri: str, locations: Locations | None = None) -> Path | None:
    """The folder on this machine that an adapter setting means for a model; None for "none". Imports no torch.

    location: "auto", "none", a local folder, NAME@ALIAS or NAME@VERSION of the registry at `adapters_uri`, or an
    s3:// prefix. What is stored elsewhere is fetched once. Raises ConfigurationError, with the remedy, if there is no
    such adapter or if it is damaged.
    """
    if is_reference(location):
        published = Registry(adapters_uri, locations).resolve(location)
        source = OutputFolder(published.uri, locations)
        if source.root.scheme != "file":
            return fetch(source)
        folder = Path(source.root.path)
        check_weights(folder, published.card)
        return folder
    if ":/" not in location:
        return resolve_adapter(location, model)
    source = OutputFolder(location, locations)
    return resolve_adapter(source.root.path, model) if source.root.scheme == "file" else fetch(source)


def pin_adapter(location: str, adapters_uri: str, locations: Locations | None = None) -> str:
    """NAME@v3 for NAME@ALIAS, so that a run keeps to one version while aliases move; any other setting as it is."""
    return Registry(adapters_uri, locations).resolve(location).reference if is_reference(location) else location


def find_adapter(location: str, adapters_uri: str, locations: Locations | None = None) -> str:
    """Where an adapter lies, the same for every process whatever its working folder; "auto" and "none" as they are."""
    if location in ("auto", "none"):
        return location
    return Registry(adapters_uri, locations).resolve(location).uri if is_reference(location) else locate(location).uri


def pin_model(model: ModelConfig, locations: Locations | None = None) -> ModelConfig:
    """The same model with its adapter's alias replaced by the version it means now.

    The registry's location becomes absolute, because workers have working folders of their own.
    """
    if not is_reference(model.adapter):
        return model
    pinned = pin_adapter(model.adapter, model.adapters_uri, locations)
    return model.model_copy(update={"adapter": pinned, "adapters_uri": locate(model.adapters_uri).uri})


def localize_model(model: ModelConfig, locations: Locations | None = None) -> ModelConfig:
    """The same model with its adapter as a folder on this machine, for the code that loads networks."""
    folder = local_adapter(model.adapter, model.model, model.adapters_uri, locations)
    return model if folder is None else model.model_copy(update={"adapter": str(folder)})
