"""A file that is written piece by piece, known by its checksums, and stored whole or not at all."""

import contextlib
import fcntl
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import xxhash

from tasks.storage.filesystems import with_retries
from tasks.storage.folder import OutputFolder
from tasks.storage.stored_file import StoredFile
from tasks.storage.traffic import TRAFFIC
from tasks.storage.writing import TEMPORARY_MARK, is_local, sync_folder

_ABANDONED_MARK = f"{TEMPORARY_MARK}ezigen-"
_MIN_AGE_S = 60.0


def remove_abandoned(min_age_s: float = _MIN_AGE_S) -> int:
    """Deletes what killed processes left in this machine's folder for temporary files; returns how many.

    A shard of features is gigabytes. Files of living processes are locked; younger ones may not be locked yet.
    """
    removed = 0
    for path in Path(tempfile.gettempdir()).glob(f"{_ABANDONED_MARK}*"):
        with contextlib.suppress(OSError), path.open("rb") as file:  # somebody else's, or gone meanwhile
            if time.time() - path.stat().st_mtime >= min_age_s:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
    return removed


# The page cache keeps a file in pieces as large as its aligned writes, and reads it a fifth faster in large ones.
_CHUNK_BYTES = 4 * 2**20


class StreamedFile:
    """A write-only file object. What it gets lies in a local temporary file until `store` puts it in its place.

    In a local output the temporary file lies beside its place, elsewhere in the machine's folder for such files.
    """

    closed = False

    def __init__(self, output: OutputFolder, relative: str) -> None:
        self._output, self._relative = output, relative
        self._filesystem = output.filesystem
        self._temporary = self._make_temporary()
        self._file = self._temporary.open("xb", buffering=0)
        if not is_local(self._filesystem):
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._whole, self._part = xxhash.xxh3_128(), xxhash.xxh3_64()
        self._position = 0
        self._waiting = bytearray()

    @property
    def local_path(self) -> Path:
        """Where the bytes lie until they are stored."""
        return self._temporary

    def write(self, data: Any) -> int:
        """Appends bytes."""
        view = memoryview(data).cast("B")
        self._whole.update(view)
        self._part.update(view)
        for start in range(0, len(view), _CHUNK_BYTES):
            self._waiting += view[start : start + _CHUNK_BYTES]
            if len(self._waiting) >= _CHUNK_BYTES:
                self._write_out(_CHUNK_BYTES)
        self._position += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def take_part(self) -> bytes:
        """XXH3-64 of what was written since the last call, or since the start."""
        digest = self._part.digest()
        self._part = xxhash.xxh3_64()
        return digest

    def write_out(self) -> None:
        """Everything so far is in the local file from here on."""
        self._write_out(len(self._waiting))

    def store(self, rows: int) -> StoredFile:
        """Puts the file in its place, replacing in one step what was there."""
        self.write_out()
        target = self._output.path(self._relative)
        if is_local(self._filesystem):
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(target)
            sync_folder(Path(target).parent)
        else:
            source = os.fspath(self._temporary)
            with_retries(
                lambda: self._filesystem.put_file(source, target), f"writing {self._output.uri(self._relative)}"
            )
            self._temporary.unlink()
            self._file.close()  # and its lock is gone
        TRAFFIC.wrote(self._position)
        return StoredFile(self._relative, self._position, rows, self._whole.hexdigest())

    def discard(self) -> None:
        """Forgets the file, unless it was stored."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._temporary.unlink()

    def _write_out(self, count: int) -> None:
        with memoryview(self._waiting) as view:
            written = 0
            while written < count:
                written += self._file.write(view[written:count])
        del self._waiting[:count]

    # What Arrow asks of a file object.
    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Arrow is done with it; `store` or `discard` is what counts."""

    def writable(self) -> bool:
        """It is for writing."""
        return True

    def readable(self) -> bool:
        """It is not for reading."""
        return False

    def seekable(self) -> bool:
        """What is written stays."""
        return False

    def _make_temporary(self) -> Path:
        if not is_local(self._filesystem):
            return Path(tempfile.gettempdir()) / f"{_ABANDONED_MARK}{uuid.uuid4().hex}"
        folder = Path(self._output.path(self._relative)).parent
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{TEMPORARY_MARK}{uuid.uuid4().hex}"
