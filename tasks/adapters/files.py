"""The files of an adapter's folder: what is in it, checked, and a local copy of one that lies elsewhere."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ezigen.adapters import AdapterCard, read_card
from ezigen.adapters.card import CARD_FILE, WEIGHTS_FILE
from ezigen.config import ConfigurationError
from ezigen.models.location import check_safetensors
from tasks.storage import OutputFolder
from tasks.storage.filesystems import with_retries
from tasks.storage.writing import is_local

SHEET_FILE = "sheet.jpg"
"""The last sample sheet of the training that made the weights."""

TEMPORARY_PREFIX = "ezigen-adapter-"


@dataclass(frozen=True)
class AdapterFolder:
    """A local folder with weights, a card and whatever lies beside them (sheet.jpg, figures.png)."""

    folder: Path
    card: AdapterCard
    weights_sha256: str
    extras: dict[str, str]
    """SHA-256 by path within the folder, with slashes."""

    @classmethod
    def read(cls, folder: Path) -> "AdapterFolder":
        """Raises ConfigurationError if the weights or the card are missing or damaged."""
        check_safetensors(folder / WEIGHTS_FILE)
        card = read_card(folder)
        extras = {
            path.relative_to(folder).as_posix(): file_sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not _is_hidden(path.relative_to(folder))
        }
        extras.pop(CARD_FILE)
        return cls(folder, card, extras.pop(WEIGHTS_FILE), extras)


def file_sha256(path: Path) -> str:
    """64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def local_copy(source: OutputFolder | Path) -> Iterator[Path]:
    """The folder itself if it is on this machine, or else a copy of its files for the length of the block.

    Raises ConfigurationError if there is none.
    """
    if isinstance(source, Path) or source.root.scheme == "file":
        folder = source if isinstance(source, Path) else Path(source.root.path)
        if not folder.is_dir():
            raise ConfigurationError(f"adapter {folder}: no such folder; check the path")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as copy:
        names = source.list("")
        if not names:
            raise ConfigurationError(f"adapter {source.root_uri}: nothing is stored there; check the location")
        for name in names:
            download(source, name, Path(copy) / name)
        yield Path(copy)


def download(source: OutputFolder, name: str, target: Path) -> None:
    """Copies one file of a folder to this machine, in pieces. Raises FileNotFoundError."""
    filesystem, path = source.filesystem, source.path(name)
    if is_local(filesystem):
        raise ValueError(f"{source.uri(name)} is on this machine already")
    with_retries(lambda: filesystem.get_file(path, os.fspath(target)), f"reading {source.uri(name)}")


def _is_hidden(path: Path) -> bool:
    """Names with a leading dot, unfinished writes among them, belong to no version."""
    return any(part.startswith(".") for part in path.parts)
