"""Making a plan from a run's parameters, for the flow and for `ezigen plan`. Loads no network library."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ezigen.config import ConfigurationError

if TYPE_CHECKING:
    from flows.parameters import CatalogParameters
    from tasks.catalog.plan import CatalogPlan

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0


def make_plan(parameters: "CatalogParameters", storage_options: Mapping[str, Any]) -> "CatalogPlan":
    """Catalog minus what is done. Raises ConfigurationError if the catalog, the model or the adapter is wrong."""
    from tasks.catalog.plan import plan_catalog

    model_fingerprint, adapter_fingerprint = read_fingerprints(parameters)
    return plan_catalog(
        parameters.inputs,
        parameters.sampler,
        model_fingerprint,
        adapter_fingerprint,
        _log_rows(),
        storage_options=storage_options,
        image_size_px=read_image_size(parameters.model.model),
    )


def check_early(parameters: "CatalogParameters") -> None:
    """Finds most mistakes within a second, before a server or Ray is started: the model, the adapter, the catalog.

    Raises ConfigurationError. A catalog whose keys are in a Prefect block is looked at later, when there is a server.
    """
    from tasks.datasets.catalogs import Catalog
    from tasks.storage import Locations

    read_fingerprints(parameters)
    if not parameters.inputs.storage_block:
        catalog = Catalog.at(parameters.inputs.catalog_uri, Locations())
        next(catalog.batches(), None)


def read_fingerprints(parameters: "CatalogParameters") -> tuple[str, str]:
    """What tells this model and this adapter from others. Raises ConfigurationError if one is missing or incomplete."""
    from ezigen.adapters import adapter_fingerprint
    from ezigen.models import model_fingerprint

    model = parameters.model
    if model.adapter == "none" and parameters.sampler.mode != "text_only":
        raise ConfigurationError(
            f'model.adapter "none" cannot show a subject: use sampler.mode text_only instead of '
            f"{parameters.sampler.mode}, or name an adapter."
        )
    return model_fingerprint(model.model), adapter_fingerprint(model.adapter, model.model)


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
