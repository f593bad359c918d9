"""Making a plan from a run's parameters, for the flow and for `ezigen plan`. Loads no network library."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ezigen.config import ConfigurationError

if TYPE_CHECKING:
    from ezigen.adapters import AdapterCard
    from flows.parameters import CatalogParameters
    from tasks.catalog.plan import CatalogPlan

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0


def make_plan(parameters: "CatalogParameters", storage_options: Mapping[str, Any]) -> "CatalogPlan":
    """Catalog minus what is done. Raises ConfigurationError if the catalog, the model or the adapter is wrong.

    An alias means the version that it points to now; `pin_adapter` first lets a run keep to that one.
    """
    from ezigen.sketch import sketch_fingerprint
    from tasks.catalog.plan import plan_catalog

    model_fingerprint, adapter_fingerprint = read_fingerprints(parameters, storage_options)
    return plan_catalog(
        parameters.inputs,
        parameters.sampler,
        model_fingerprint,
        adapter_fingerprint,
        _log_rows(),
        storage_options=storage_options,
        image_size_px=read_image_size(parameters.model.model),
        sketch_fingerprint=sketch_fingerprint(parameters.model.sketch, parameters.sampler),
    )


def pin_adapter(parameters: "CatalogParameters", storage_options: Mapping[str, Any]) -> "CatalogParameters":
    """The same parameters with NAME@v3 for NAME@ALIAS, whatever the alias means later."""
    from tasks.adapters.location import pin_model
    from tasks.storage import Locations

    model = pin_model(parameters.model, Locations(storage_options=dict(storage_options)))
    return replace(parameters, model=model)


def check_early(parameters: "CatalogParameters") -> None:
    """Finds most mistakes within a second, before a server or Ray is started: the model, the adapter, the catalog.

    Raises ConfigurationError. What needs keys in a Prefect block is looked at later, when there is a server.
    """
    from tasks.adapters import is_reference
    from tasks.datasets.catalogs import Catalog
    from tasks.storage import Locations

    adapter, keys_are_known = parameters.model.adapter, not parameters.inputs.storage_block
    if keys_are_known or not (is_reference(adapter) or ":/" in adapter):
        read_fingerprints(parameters, {})
    if keys_are_known:
        catalog = Catalog.at(parameters.inputs.catalog_uri, Locations())
        next(catalog.batches(), None)


def read_fingerprints(parameters: "CatalogParameters", storage_options: Mapping[str, Any]) -> tuple[str, str]:
    """What tells this model and this adapter from others; an adapter that is stored elsewhere is fetched once.

    Raises ConfigurationError if one is missing, incomplete or damaged, or if they do not belong together; also for a
    sketch model.
    """
    from ezigen.adapters import adapter_fingerprint
    from ezigen.adapters.card import WEIGHTS_FILE, check_base, read_card
    from ezigen.models import model_fingerprint
    from ezigen.sketch import check_sketch, find_pipeline
    from tasks.adapters import local_adapter
    from tasks.storage import Locations

    model = parameters.model
    if model.adapter == "none" and parameters.sampler.mode != "text_only":
        raise ConfigurationError(
            f'model.adapter "none" cannot show a subject: use sampler.mode text_only instead of '
            f"{parameters.sampler.mode}, or name an adapter."
        )
    check_sketch(model.sketch, parameters.sampler)
    if model.sketch.draws:
        find_pipeline(model.sketch.model)
    fingerprint = model_fingerprint(model.model)
    locations = Locations(storage_options=dict(storage_options))
    folder = local_adapter(model.adapter, model.model, model.adapters_uri, locations)
    if folder is None:
        return fingerprint, adapter_fingerprint("none")
    if (folder / WEIGHTS_FILE).is_file():
        card = read_card(folder)
        check_base(card, fingerprint, model.adapter)
        _check_encoder(card, parameters)
    return fingerprint, adapter_fingerprint(str(folder), model.model)


def _check_encoder(card: "AdapterCard", parameters: "CatalogParameters") -> None:
    """Raises ConfigurationError if the adapter's own subject encoder cannot do what the run wants of it."""
    from ezigen.adapters.card import check_subject_encoder

    adapter = f"adapter {parameters.model.adapter}"
    check_subject_encoder(card.subject_encoder, parameters.sampler, adapter)
    if parameters.inputs.features_uri and card.subject_encoder != "frozen":
        raise ConfigurationError(
            f"inputs.features_uri: a feature store holds what the frozen UNet makes of subjects, but {adapter} encodes "
            f"them by {card.describe_encoder()}; leave inputs.features_uri empty"
        )


def read_image_size(model: str) -> int:
    """Side of the model's images in pixels, from its configuration files."""
    from ezigen.models.location import resolve_folder

    folder = resolve_folder(model)
    unet = json.loads((folder / "unet" / "config.json").read_bytes())
    vae = json.loads((folder / "vae" / "config.json").read_bytes())
    num_halvings = len(vae["block_out_channels"]) - 1
    return int(unet["sample_size"]) << num_halvings


def _log_rows() -> Callable[[int], None]:
    """Says now and then how many rows have been read; short catalogs are read in silence."""
    next_at = time.monotonic() + LOG_INTERVAL_S

    def log(num_rows: int) -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + LOG_INTERVAL_S
            logger.info("planning: %s rows read", f"{num_rows:,}")

    return log
