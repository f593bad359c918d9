"""Telling what lies at a location, and showing it."""

from collections.abc import Mapping
from typing import Any, Literal

from ezigen.adapters.card import AUTHORS_FILES, WEIGHTS_FILE
from ezigen.config import ConfigurationError
from tasks.inspection.view import View
from tasks.storage import Locations, OutputFolder, RunOutput

Kind = Literal["pairs", "features", "results", "adapter"]

KINDS: Mapping[Kind, str] = {
    "pairs": "a set of pairs (build_pairs)",
    "features": "a feature store (precompute_features)",
    "results": "the output of a catalog run (personalize_catalog)",
    "adapter": "an adapter's folder",
}


def inspect_location(uri: str, storage_options: Mapping[str, Any] | None = None) -> View:
    """What lies there: counts, fingerprints, schema, a contact sheet.

    Raises ConfigurationError if it is nothing that can be inspected, or damaged.
    """
    output = RunOutput(uri, Locations(storage_options=dict(storage_options or {})))
    return _show(detect_kind(output), output)


def inspect_item(uri: str, item_id: str, storage_options: Mapping[str, Any] | None = None) -> View:
    """One pair, subject or catalog item of what lies there.

    Raises ConfigurationError if there is no such id, naming ids that are near it.
    """
    output = RunOutput(uri, Locations(storage_options=dict(storage_options or {})))
    return _show_item(detect_kind(output), output, item_id)


def detect_kind(output: RunOutput) -> Kind:
    """What lies in a folder. Raises ConfigurationError, saying what was looked for, if it is nothing of that."""
    filesystem = output.filesystem
    if not filesystem.exists(output.root.path):
        raise ConfigurationError(f"{output.root_uri} does not exist; check the path.")
    if filesystem.isfile(output.root.path):
        raise ConfigurationError(f"{output.root_uri} is a file; give the folder that it lies in.")
    names = set(output.list(""))
    if WEIGHTS_FILE in names or (names & set(AUTHORS_FILES) and "run.json" not in names):
        return "adapter"
    if "store.json" in names or _flow(output) == "precompute_features":
        return "features"
    if "plan.json" in output.list("plan") or output.list("pairs") or _flow(output) == "build_pairs":
        return "pairs"
    if "run.json" in names or output.list_results():
        return "results"
    known = "; ".join(KINDS.values())
    raise ConfigurationError(f"{output.root_uri} is nothing that can be inspected. It must be one of: {known}.")


def _flow(output: OutputFolder) -> str:
    record = output.read_run()
    return "" if record is None else record.flow


def _show(kind: Kind, output: RunOutput) -> View:
    if kind == "pairs":
        from tasks.inspection.pairs_set import inspect_pairs

        return inspect_pairs(output)
    if kind == "features":
        from tasks.inspection.feature_store import inspect_store

        return inspect_store(output)
    if kind == "results":
        from tasks.inspection.result_set import inspect_results

        return inspect_results(output)
    from tasks.adapters import local_adapter
    from tasks.adapters.files import SHEET_FILE
    from tasks.inspection.adapter_folder import inspect_adapter

    folder = local_adapter(output.root_uri, "", "", output.locations)
    assert folder is not None  # a location is never "none"
    sheet = output.read(SHEET_FILE) if SHEET_FILE in output.list("") else None
    return inspect_adapter(folder, output.root_uri, sheet)


def _show_item(kind: Kind, output: RunOutput, item_id: str) -> View:
    if kind == "pairs":
        from tasks.inspection.pairs_set import inspect_pair

        return inspect_pair(output, item_id)
    if kind == "features":
        from tasks.inspection.feature_store import inspect_subject

        return inspect_subject(output, item_id)
    if kind == "results":
        from tasks.inspection.result_set import inspect_result

        return inspect_result(output, item_id)
    raise ConfigurationError(f"--id: {output.root_uri} is {KINDS[kind]}, which holds no items; leave --id out.")
