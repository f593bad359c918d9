"""Automations of Prefect's server as code: a file of them, applied as often as one likes.

    python -m flows.automations infra/automations.yaml --notify slack-webhook/ops

Prefect's own `prefect automation create` makes another one each time.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import Automation, AutomationCore
from pydantic import ValidationError

from ezigen.config import ConfigurationError
from flows.exits import plain_errors
from flows.terminal import out


def main(
    file: Annotated[Path, typer.Argument(help="Automations, as in infra/automations.yaml.")],
    notify: Annotated[
        str, typer.Option(metavar="TYPE/NAME", help="Block that tells people, such as slack-webhook/ops.")
    ] = "",
) -> None:
    """Apply automations to the Prefect server that PREFECT_API_URL names."""
    with plain_errors():
        for name, change in apply_automations(file, notify):
            out.print(f"{change:9} {name}")


def apply_automations(path: Path, notify: str = "") -> list[tuple[str, str]]:
    """Makes the server's automations those of the file, by name; others stay as they are.

    notify: a notification block, TYPE/NAME; without one nobody is told. Returns names with "created", "updated" or
    "unchanged". Raises ConfigurationError for a file that Prefect does not understand or a block that is not there.
    """
    with get_client(sync_client=True) as client:
        block_id = _find_block(client, notify) if notify else None
        wanted = [_read_automation(path, entry, block_id) for entry in _read_entries(path)]
        return [(automation.name, _apply(client, automation)) for automation in wanted]


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = yaml.safe_load(path.read_text())["automations"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: no file of automations ({error!r}); see infra/automations.yaml.") from error
    return list(entries)


def _read_automation(path: Path, entry: dict[str, Any], block_id: Any) -> AutomationCore:
    entry = dict(entry)
    notification = entry.pop("notification", None)
    if notification and block_id:
        actions = [action for action in entry.get("actions", ()) if action.get("type") != "do-nothing"]
        entry["actions"] = [*actions, {"type": "send-notification", "block_document_id": block_id, **notification}]
    # Prefect leaves out a key that it does not know, without a word.
    if unknown := set(entry) - set(AutomationCore.model_fields):
        raise ConfigurationError(f"{path}, automation {entry.get('name', '?')!r}: unknown keys {sorted(unknown)}.")
    try:
        return AutomationCore.model_validate(entry)
    except ValidationError as error:
        raise ConfigurationError(f"{path}, automation {entry.get('name', '?')!r}: {error}") from error


def _find_block(client: SyncPrefectClient, notify: str) -> Any:
    block_type, _, name = notify.partition("/")
    try:
        return client.read_block_document_by_name(name, block_type).id
    except Exception as error:
        raise ConfigurationError(
            f"--notify: the server has no block {notify!r}; make it in its pages (Blocks), and write TYPE/NAME."
        ) from error


def _apply(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    present = client.read_automations_by_name(wanted.name)
    for surplus in present[1:]:
        client.delete_automation(surplus.id)
    if not present:
        client.create_automation(wanted)
        return "created"
    if _content(present[0]) == _content(wanted):
        return "unchanged"
    client.update_automation(present[0].id, wanted)
    return "updated"


def _content(automation: Automation | AutomationCore) -> dict[str, Any]:
    """What a file can say of one; the server adds ids. As Python's values: sets of events have no order."""
    content = automation.model_dump(include=set(AutomationCore.model_fields) - {"owner_resource"})
    content["trigger"].pop("id", None)
    return content


if __name__ == "__main__":
    typer.run(main)
