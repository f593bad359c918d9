"""`ezigen inspect`: prints what lies at a location and saves its pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from ezigen.config import ConfigurationError
from flows.job import last_part
from flows.terminal import out, print_table
from tasks.inspection import View, inspect_item, inspect_location


def show_location(location: str, item_id: str | None, folder: str, storage_options: Mapping[str, Any]) -> None:
    """What lies there, or one item of it. Pictures go to the folder, and their paths are printed.

    Raises ConfigurationError for an unknown location or id.
    """
    if item_id is None:
        view = inspect_location(location, storage_options)
    else:
        view = inspect_item(location, item_id, storage_options)
    print_view(view)
    for path in save_pictures(view, Path(folder), last_part(location)):
        out.print(f"picture: {escape(str(path))}")


def print_view(view: View) -> None:
    """Facts and tables."""
    out.print(f"[bold]{escape(view.title)}[/]")
    print_table(("", ""), view.facts)
    for table in view.tables:
        out.print(f"\n[bold]{escape(table.title)}[/]")
        print_table(table.columns, table.rows)


def save_pictures(view: View, folder: Path, name: str) -> list[Path]:
    """Writes the view's pictures and returns their paths. Raises ConfigurationError if that is not possible."""
    paths = []
    for picture in view.pictures:
        path = folder / f"{name}-{picture.name}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.data)
        except OSError as error:
            raise ConfigurationError(f"--save {folder}: cannot be written ({error.strerror})") from error
        paths.append(path)
    return paths
