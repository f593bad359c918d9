"""Atomic writes: a reader sees the whole object or none."""

import contextlib
import errno
import mimetypes
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.storage.filesystems import http_status, with_retries
from tasks.storage.traffic import TRAFFIC

TEMPORARY_MARK = ".partial-"
_COPY_BYTES = 4 * 2**20
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def write_atomic(filesystem: Any, path: str, data: bytes) -> None:
    """Stores `data` under `path`, replacing what was there in one step.

    Locally: a temporary name in the same folder, fsync, replace, fsync of the folder. On an object store: one put.
    """
    if is_local(filesystem):
        _write_file(Path(path), data)
    else:
        _put(filesystem, path, data)
    TRAFFIC.wrote(len(data))


def write_new(filesystem: Any, path: str, data: bytes) -> bool:
    """Stores `data` under `path` in one step unless something is there already; says whether it did.

    On an object store: one conditional put. A store that ignores conditions replaces, as `write_atomic` does.
    """
    if is_local(filesystem):
        return _link_file(Path(path), data)
    if "s3" not in filesystem.protocol:  # a store inside one process, for tests
        if filesystem.exists(path):
            return False
        filesystem.pipe_file(path, data)
        return True
    try:
        with_retries(lambda: filesystem.pipe_file(path, data, IfNoneMatch="*"), f"writing {path}")
    except OSError as error:
        if not isinstance(error, FileExistsError) and http_status(error) != 412:
            raise
        # A put that timed out may have arrived; its repetition then fails on its own success.
        return bytes(with_retries(lambda: filesystem.cat_file(path), f"reading {path}")) == data
    return True


def store_file(filesystem: Any, path: str, source: Path) -> None:
    """Stores a copy of a local file under `path`, replacing what was there in one step, without reading it whole."""
    if is_local(filesystem):
        _copy_file(source, Path(path))
    else:
        with_retries(lambda: filesystem.put_file(os.fspath(source), path), f"writing {path}")
    TRAFFIC.wrote(source.stat().st_size)


def is_local(filesystem: Any) -> bool:
    """Whether paths of this filesystem are the machine's own."""
    return "local" in filesystem.protocol


def is_temporary(path: str) -> bool:
    """Whether an object is what a crash left of an unfinished write."""
    return TEMPORARY_MARK in path.rpartition("/")[2]


def _put(filesystem: Any, path: str, data: bytes) -> None:
    # Browsers show a page or a picture from a store only if it says what it is.
    kind = mimetypes.guess_type(path)[0]
    options = {"ContentType": kind} if kind and "s3" in filesystem.protocol else {}
    with_retries(lambda: filesystem.pipe_file(path, data, **options), f"writing {path}")


def _write_file(path: Path, data: bytes) -> None:
    with _beside(path) as temporary:
        _write_durable(temporary, data)
        temporary.replace(path)


def _copy_file(source: Path, path: Path) -> None:
    with _beside(path) as temporary:
        with source.open("rb") as original, temporary.open("xb") as copy:
            shutil.copyfileobj(original, copy, _COPY_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.replace(path)


def _link_file(path: Path, data: bytes) -> bool:
    """Like `_write_file`, but a link instead of a replacement: it fails if the name is taken."""
    with _beside(path) as temporary:
        _write_durable(temporary, data)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A network file system without links: nothing can be done in one step, the caller's lease has to do.
            if path.exists():
                return False
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, which is made; in the end the folder is durable and the name gone."""
    _make_folder(path.parent)
    # Not derived from the target's name, which may already have the longest length that the disk allows.
    temporary = path.parent / f"{TEMPORARY_MARK}{uuid.uuid4().hex}"
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _write_durable(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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
