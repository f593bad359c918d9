"""Locations: what a URI means, and which ones a catalog's rows may open."""

import functools
import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from ezigen.config import CatalogInputs, ConfigurationError, ErrorCode, ItemError
from tasks.storage.filesystems import classify, describe_error, hide_credentials, open_filesystem, with_retries
from tasks.storage.local_files import open_unlinked
from tasks.storage.traffic import TRAFFIC

SCHEMES = ("file", "s3", "memory")
MAX_PICTURE_BYTES = 128 * 2**20

# "scheme:/" makes a URI; a colon elsewhere belongs to a file's name.
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/.*)", re.DOTALL)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Location:
    """A scheme and the path that its filesystem takes: absolute for a file, bucket/key for S3."""

    scheme: str
    path: str

    @property
    def uri(self) -> str:
        """As people write it: a plain path for a file."""
        return self.path if self.scheme == "file" else f"{self.scheme}://{self.path}"

    @property
    def parent(self) -> "Location":
        """The folder that holds it."""
        return Location(self.scheme, posixpath.dirname(self.path.rstrip("/")))

    @property
    def suffix(self) -> str:
        """The lower-case file suffix with its dot."""
        return posixpath.splitext(self.path)[1].lower()


class _BadLocationError(ValueError):
    def __init__(self, message: str, *, scheme: bool = False) -> None:
        super().__init__(message)
        self.code = ErrorCode.LOCATION_UNKNOWN_SCHEME if scheme else ErrorCode.LOCATION_DENIED


def locate(uri: str) -> Location:
    """Where the operator's own location lies; a relative path starts at the working folder.

    Raises ConfigurationError for a scheme that is not supported or a malformed location.
    """
    try:
        location = _parse(uri, SCHEMES, base=Location("file", os.fspath(Path.cwd())))
    except _BadLocationError as error:
        raise ConfigurationError(f"{_shown(uri)}: {error}") from error
    return location


@dataclass(frozen=True, kw_only=True)
class Locations:
    """What rows may open: small, picklable, made once and sent to every process.

    A row's location must have an allowed scheme and lie, after `..` and symbolic links are resolved, inside one of the
    allowed roots. Relative locations start at `base_uri`, the catalog's folder.
    """

    allowed_roots: tuple[str, ...] = ()
    base_uri: str = ""
    allowed_schemes: tuple[str, ...] = SCHEMES
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """For S3: endpoint_url, key, secret, token, region. What is absent comes from the standard AWS variables."""

    @classmethod
    def for_catalog(cls, inputs: CatalogInputs, storage_options: Mapping[str, Any] | None = None) -> Self:
        """The locations that a catalog's rows may read: `allowed_roots`, or else the catalog's own folder."""
        folder = locate(inputs.catalog_uri).parent.uri
        roots = tuple(locate(root).uri for root in inputs.allowed_roots) or (folder,)
        return cls(allowed_roots=roots, base_uri=folder, storage_options=dict(storage_options or {}))

    def filesystem(self, location: Location) -> Any:
        """The filesystem for a location, built in this process."""
        return open_filesystem(location.scheme, self.storage_options if location.scheme == "s3" else None)

    def check(self, uri: str) -> Location:
        """Where a row's location lies. Raises ItemError(LOCATION_UNKNOWN_SCHEME or LOCATION_DENIED)."""
        try:
            location = _parse(uri, self.allowed_schemes, base=locate(self.base_uri))
        except _BadLocationError as error:
            raise ItemError(error.code, f"{_shown(uri)}: {error}") from error
        if not any(_is_inside(location, locate(root)) for root in self.allowed_roots):
            raise ItemError(
                ErrorCode.LOCATION_DENIED,
                f"{_shown(uri)} lies outside the allowed roots ({', '.join(self.allowed_roots) or 'none are set'}); "
                "add its folder to allowed_roots or move the file.",
            )
        return location

    def open(self, uri: str) -> tuple[Any, str]:
        """Filesystem and path of a row's location, checked like `check`; nothing is opened yet."""
        location = self.check(uri)
        return self.filesystem(location), location.path

    def read_bytes(self, uri: str, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
        """The bytes of one object of a row, at most `max_bytes` of them.

        Raises ItemError: IMAGE_MISSING, IMAGE_TOO_LARGE, LOCATION_*, or STORAGE_ERROR after several tries.
        """
        filesystem, path = self.open(uri)
        try:
            return TRAFFIC.read(
                with_retries(lambda: _read_bounded(filesystem, path, uri, max_bytes), f"reading {_shown(uri)}")
            )
        except (ItemError, MemoryError):
            raise
        except Exception as error:
            raise _to_item_error(uri, error) from error


def _parse(uri: str, schemes: tuple[str, ...], base: Location) -> Location:
    if not uri.strip():
        raise _BadLocationError("the location is empty")
    if _CONTROL.search(uri):
        raise _BadLocationError("contains a control character")
    match = _URI.fullmatch(uri)
    if match is None:
        return _join(base, uri)
    scheme = match[1].lower()
    if scheme not in schemes:
        known = ", ".join(f"{name}://" for name in schemes if name != "memory")
        raise _BadLocationError(f"the scheme {scheme!r} is not supported; write a path or one of {known}", scheme=True)
    if scheme == "file":
        return Location("file", _real_path(_file_path(match[2])))
    return _parse_object(scheme, match[2])


def _file_path(rest: str) -> str:
    """The path of a file URI (RFC 8089): no host but localhost, percent signs decoded once."""
    if not rest.startswith("//"):
        path = rest
    else:
        host, _, tail = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise _BadLocationError("a file location must not name a host; write file:///folder/file")
        path = "/" + tail
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise _BadLocationError("contains percent signs that do not encode UTF-8") from error
    if _CONTROL.search(decoded):
        raise _BadLocationError("contains an encoded control character")
    return decoded


def _parse_object(scheme: str, rest: str) -> Location:
    bucket, _, key = rest[2:].partition("/")
    if not rest.startswith("//") or not bucket:
        raise _BadLocationError(f"is not of the form {scheme}://bucket/key")
    if "@" in bucket or ":" in bucket:
        raise _BadLocationError("must not contain credentials; set the standard AWS variables instead")
    if {".", ".."} & set(key.split("/")) or bucket in (".", ".."):
        raise _BadLocationError('contains a "." or ".." segment, which has no meaning in an object store')
    return Location(scheme, f"{bucket}/{key}".rstrip("/"))


def _join(base: Location, relative: str) -> Location:
    if base.scheme == "file":
        return Location("file", _real_path(os.path.join(base.path, os.path.expanduser(relative))))  # noqa: PTH111, PTH118
    if relative.startswith("/"):
        return Location("file", _real_path(relative))
    path = posixpath.normpath(posixpath.join(base.path, relative))
    if path.startswith("..") or path == ".":
        raise _BadLocationError("leaves its bucket")
    return Location(base.scheme, path)


def _real_path(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise _BadLocationError(f"is no usable path ({error})") from error


@functools.lru_cache(maxsize=256)
def _root_prefix(root: Location) -> str:
    return root.path.rstrip("/") + "/"


def _is_inside(location: Location, root: Location) -> bool:
    return location.scheme == root.scheme and (location.path + "/").startswith(_root_prefix(root))


def _read_bounded(filesystem: Any, path: str, uri: str, max_bytes: int) -> bytes:
    info = filesystem.info(path)
    if info["type"] != "file":
        raise ItemError(ErrorCode.IMAGE_MISSING, f"{_shown(uri)} is a {info['type']}, not a file.")
    size = int(info["size"] or 0)
    if size > max_bytes:
        raise _too_large(uri, size, max_bytes)
    if size == 0:
        return b""
    if "local" in filesystem.protocol:
        with open_unlinked(path) as file:
            data = file.read(max_bytes + 1)
    else:
        data = filesystem.cat_file(path, start=0, end=min(size, max_bytes))
    if len(data) > max_bytes:
        raise _too_large(uri, len(data), max_bytes)
    return bytes(data)


def _too_large(uri: str, size: int, max_bytes: int) -> ItemError:
    return ItemError(
        ErrorCode.IMAGE_TOO_LARGE,
        f"{_shown(uri)} has {size:,} bytes; at most {max_bytes:,} are read. Store a smaller one.",
    )


def _to_item_error(uri: str, error: Exception) -> ItemError:
    trouble = classify(error)
    if trouble == "missing":
        return ItemError(ErrorCode.IMAGE_MISSING, f"{_shown(uri)} does not exist; check the row's location.")
    if trouble == "denied":
        return ItemError(
            ErrorCode.LOCATION_DENIED,
            f"{_shown(uri)} may not be read ({describe_error(error)}); check the permissions and keys.",
        )
    return ItemError(ErrorCode.STORAGE_ERROR, f"{_shown(uri)} could not be read: {describe_error(error)}")


def _shown(uri: str) -> str:
    """A location for a message: printable, not endless, without credentials."""
    safe = hide_credentials(uri)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in safe[:300]) + (
        "…" if len(safe) > 300 else ""
    )
