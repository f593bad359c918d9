"""Benchmarks made of the embedded model's world, for runs without a download. They measure no other model."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ezigen.config import ConfigurationError
from tasks.storage.filesystems import describe_error
from tasks.storage.folder import OutputFolder
from tasks.storage.locations import Locations

VERSION = 1
"""A changed world is another benchmark, in another folder."""

_COMPLETE = "complete.json"


def write_miniature(kind: str, folder_uri: str, locations: Locations | None = None) -> str:
    """Writes one of the mini-* benchmarks into `folder_uri`, unless it is there already, and returns its own folder.

    The subjects are the held-out products that all figures of the embedded model are measured on. The files are a
    function of kind and version alone; the last one written says that they are complete, so that a reader never takes
    half of them, and two writers at once write the same.

    mini-people has no people, as the world has none: its identities are the creatures among those products, each in
    three colours, so that identities of one class differ as people do. It lets the people's tables be made and tested
    end to end; its figures say nothing of faces, and a face encoder finds none there.

    Raises ConfigurationError if the folder cannot be written.
    """
    folder = OutputFolder(f"{folder_uri.rstrip('/')}/{kind}-{VERSION}", locations)
    try:
        if _COMPLETE not in folder.list(""):
            _write(kind, folder)
    except OSError as error:
        raise ConfigurationError(
            f"folder_uri {folder.root_uri}: the benchmark cannot be written there ({describe_error(error)})."
        ) from error
    return folder.root_uri


def _write(kind: str, folder: OutputFolder) -> None:
    with tempfile.TemporaryDirectory(prefix="ezigen-benchmark-") as work:
        _WRITERS[kind](Path(work))
        for path in sorted(path for path in Path(work).rglob("*") if path.is_file()):
            folder.write(path.relative_to(work).as_posix(), path.read_bytes())
    folder.write(_COMPLETE, b"{}\n")


def _write_dreambench(work: Path) -> None:
    from ezigen.mini.world.benchmarks import PRODUCTS, make_composer, write_dreambench

    write_dreambench(make_composer(), work, len(PRODUCTS))


def _write_dreamedit(work: Path) -> None:
    from ezigen.mini.world.benchmarks import PRODUCTS, make_composer, write_dreamedit

    write_dreamedit(make_composer(), work, len(PRODUCTS))


def _write_people(work: Path) -> None:
    from ezigen.mini.world.benchmarks import CREATURES, IDENTITY_HUES, make_composer, write_people

    write_people(make_composer(IDENTITY_HUES, CREATURES), work)


_WRITERS: dict[str, Callable[[Path], None]] = {
    "mini-dreambench": _write_dreambench,
    "mini-dreamedit": _write_dreamedit,
    "mini-people": _write_people,
}
