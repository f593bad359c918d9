"""Compare-and-swap of one small object: the only operation that a lease needs of a store."""

import fcntl
import logging
import os
import threading
from pathlib import Path
from typing import Any, Protocol

from tasks.storage.filesystems import http_status, with_retries
from tasks.storage.locations import Location
from tasks.storage.writing import write_atomic

logger = logging.getLogger(__name__)


class LeaseStore(Protocol):
    """One object that several processes change. A version says which content was seen; None: there was none."""

    def read(self) -> tuple[bytes, str | None]:
        """The content and its version; b"" and None if there is none."""

    def swap(self, data: bytes, expected: str | None) -> str | None:
        """Stores `data` if the version still is the expected one and returns the new version, or None if it is not."""


def open_lease_store(filesystem: Any, location: Location) -> LeaseStore:
    """The store for a location's kind of filesystem."""
    if location.scheme == "file":
        return FileLeaseStore(filesystem, Path(location.path))
    if location.scheme == "s3":
        return S3LeaseStore(filesystem, location.path)
    return MemoryLeaseStore(filesystem, location.path)


class FileLeaseStore:
    """A file that is replaced under an exclusive lock on it; the kernel drops the lock of a dead process."""

    def __init__(self, filesystem: Any, path: Path) -> None:
        self._filesystem = filesystem
        self._path = path

    def read(self) -> tuple[bytes, str | None]:
        """See LeaseStore."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return b"", None
        return data, data.hex()

    def swap(self, data: bytes, expected: str | None) -> str | None:
        """See LeaseStore."""
        descriptor = self._open_locked()
        try:
            if self._path.read_bytes().hex() != (expected or ""):
                return None
            write_atomic(self._filesystem, str(self._path), data)
            return data.hex()
        finally:
            os.close(descriptor)

    def _open_locked(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _is_same_file(descriptor, self._path):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # Somebody replaced the file while this process waited for its lock.
            os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class S3LeaseStore:
    """An object that is changed by conditional puts (If-None-Match, If-Match)."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem = filesystem
        self._path = path
        self._checked = False

    def read(self) -> tuple[bytes, str | None]:
        """See LeaseStore."""
        return with_retries(self._read_once, f"reading {self._path}")

    def _read_once(self) -> tuple[bytes, str | None]:
        try:
            while True:
                before = self._filesystem.info(self._path)["ETag"]
                data = bytes(self._filesystem.cat_file(self._path))
                if self._filesystem.info(self._path)["ETag"] == before:
                    return data, str(before)
        except FileNotFoundError:
            return b"", None

    def swap(self, data: bytes, expected: str | None) -> str | None:
        """See LeaseStore."""
        version = self._put(data, {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected})
        if version is None:
            # A put that timed out may have arrived; its repetition then fails on its own success.
            found, version = self.read()
            version = version if found == data else None
        if version is not None and not self._checked:
            self._warn_unless_conditional(data)
        return version

    def _put(self, data: bytes, condition: dict[str, str]) -> str | None:
        try:
            answer = with_retries(
                lambda: self._filesystem.pipe_file(self._path, data, **condition), f"writing {self._path}"
            )
        except OSError as error:
            if isinstance(error, FileExistsError) or http_status(error) == 412:
                return None
            # AWS answers 404 when the object that should match has been deleted.
            if isinstance(error, FileNotFoundError) and "IfMatch" in condition:
                return None
            raise
        return str(answer["ETag"])

    def _warn_unless_conditional(self, data: bytes) -> None:
        self._checked = True
        if self._put(data, {"IfNoneMatch": "*"}) is not None:
            logger.warning(
                "%s: this store ignores conditional writes, so two runs that start at the same moment may not notice "
                "each other; see to it that only one runs at a time.",
                self._path,
            )


class MemoryLeaseStore:
    """A store inside one process, for tests."""

    _lock = threading.Lock()

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem = filesystem
        self._path = path

    def read(self) -> tuple[bytes, str | None]:
        """See LeaseStore."""
        try:
            data = bytes(self._filesystem.cat_file(self._path))
        except FileNotFoundError:
            return b"", None
        return data, data.hex()

    def swap(self, data: bytes, expected: str | None) -> str | None:
        """See LeaseStore."""
        with self._lock:
            if self.read()[1] != expected:
                return None
            self._filesystem.pipe_file(self._path, data)
            return data.hex()
