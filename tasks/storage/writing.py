"""Atomic writes: a reader sees the whole object or none."""

import contextlib
import mimetypes
import os
import uuid
from pathlib import Path
from typing import Any

from tasks.storage.filesystems import with_retries

TEMPORARY_MARK = ".partial-"


def write_atomic(filesystem: Any, path: str, data: bytes) -> None:
    """Stores `data` under `path`, replacing what was there in one step.

    Locally: a temporary name in the same folder, fsync, replace, fsync of the folder. On an object store: one put.
    """
    if is_local(filesystem):
        _write_file(Path(path), data)
        return
    # Browsers show a page or a picture from a store only if it says what it is.
    kind = mimetypes.guess_type(path)[0]
    options = {"ContentType": kind} if kind and "s3" in filesystem.protocol else {}
    with_retries(lambda: filesystem.pipe_file(path, data, **options), f"writing {path}")


def is_local(filesystem: Any) -> bool:
    """Whether paths of this filesystem are the machine's own."""
    return "local" in filesystem.protocol


def is_temporary(path: str) -> bool:
    """Whether an object is what a crash left of an unfinished write."""
    return TEMPORARY_MARK in path.rpartition("/")[2]


def _write_file(path: Path, data: bytes) -> None:
    _make_folder(path.parent)
    # Not derived from the target's name, which may already have the longest length that the disk allows.
    temporary = path.parent / f"{TEMPORARY_MARK}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, each of them durable."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
