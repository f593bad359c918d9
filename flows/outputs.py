"""The outputs that commands read."""

from typing import TYPE_CHECKING

from ezigen.config import ConfigurationError
from flows.plan_commands import load_options

if TYPE_CHECKING:
    from tasks.storage import RunOutput


def open_output(uri: str, storage_block: str = "") -> "RunOutput":
    """The output folder of a run. Raises ConfigurationError if no run has written there."""
    from tasks.storage import Locations, RunOutput

    output = RunOutput(uri, Locations(storage_options=load_options(storage_block)))
    if output.read_run() is None and not output.list_results():
        raise ConfigurationError(f"{output.root_uri}: no run has written here; check the path of the output.")
    return output
