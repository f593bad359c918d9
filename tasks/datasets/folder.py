"""The folder of a data set that people bring: annotation files that must be right, pictures that may be wrong."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from ezigen.config import ConfigurationError
from ezigen.pairs import Refusal, RefusalReason
from tasks.storage.filesystems import classify, describe_error, with_retries
from tasks.storage.locations import Location, Locations, locate
from tasks.storage.writing import is_local

T = TypeVar("T")

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
WRONG_ENTRY = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding one entry of an annotation file raises. Reading the file alone looks at no text within an entry."""

# Not what a copy to another disk changes: pairs that are half done would have to start again.
_VERSION_MARKS = ("ETag", "mtime", "LastModified", "created")


class DatasetFolder:
    """A data set's folder on any store. Small and picklable; `field` is the input that names it, for messages."""

    def __init__(self, root_uri: str, field: str, locations: Locations | None) -> None:
        if not root_uri.strip():
            raise ConfigurationError(f"{field} is empty; name the data set's folder.")
        self.root = locate(root_uri)
        self._field = field
        self._given = locations or Locations()

    def locations(self, folders: Sequence[str]) -> Locations:
        """What pairs may open: the data set's folder, and what `folders` in it are, should they be links."""
        roots = dict.fromkeys((self.root.uri, *(locate(self._at(folder).uri).uri for folder in folders)))
        return dataclasses.replace(self._given, allowed_roots=tuple(roots), base_uri=self.root.uri)

    def uri_of(self, folder: str, name: object) -> str:
        """The location of a picture that an annotation file names, inside `folder`.

        Raises Refusal(LOCATION_DENIED) for a name that leads out of it.
        """
        return self._at(f"{folder}/{check_name(name)}").uri

    def has(self, relative: str) -> bool:
        """Whether a file or folder exists. Raises ConfigurationError if the store does not answer."""
        location = self._at(relative)
        return bool(self._guarded(relative, lambda filesystem: filesystem.exists(location.path)))

    def entries(self, relative: str = "") -> dict[str, bool]:
        """By name, sorted, whether it is a folder; empty for an absent one. What begins with a dot is left out."""
        return dict(sorted(self._guarded(relative, lambda filesystem: self._look(filesystem, relative)).items()))

    def describe(self) -> str:
        """What the folder holds, for messages about what it lacks."""
        names = self._guarded("", self._names)
        if not names:
            return "it is absent or empty"
        return f"it holds {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"

    def refusal(self, what: str) -> ConfigurationError:
        """The error of a data set that cannot be used as it is."""
        return ConfigurationError(f"{self._field} {self.root.uri}: {what}")

    def signature(self, relative: str) -> str:
        """Changes when a file does: its size and version tag or time."""
        info = self._guarded(relative, lambda filesystem: filesystem.info(self._at(relative).path))
        version = next((str(info[mark]) for mark in _VERSION_MARKS if info.get(mark) is not None), "")
        return f"{relative}: {info.get('size')} bytes, version {version}"

    def load(self, relative: str) -> bytes:
        """The bytes of an annotation file. Raises ConfigurationError if there are none."""
        data = self._guarded(relative, lambda filesystem: _read_file(filesystem, self._at(relative).path))
        if not data:
            raise self.refusal(f"{relative} is empty (0 bytes); copy it again.")
        return bytes(data)

    def parse(self, relative: str, data: bytes, form: type[T]) -> T:
        """What an annotation file says. Raises ConfigurationError that names the place, msgspec.ValidationError."""
        try:
            return msgspec.json.decode(data, type=form)
        except msgspec.ValidationError:
            raise
        except WRONG_ENTRY as error:
            raise self.refusal(f"{relative} is damaged or cut off ({error}); copy it again.") from error

    def invalid(self, relative: str, error: Exception) -> ConfigurationError:
        """The error of a file that is JSON, but says something else than the format wants."""
        return self.refusal(f"{relative} is not in the format of the data set: {error}.")

    def _at(self, relative: str) -> Location:
        return Location(self.root.scheme, f"{self.root.path.rstrip('/')}/{relative}".rstrip("/"))

    def _names(self, filesystem: Any) -> list[str]:
        try:
            return sorted(entry.rstrip("/").rpartition("/")[2] for entry in filesystem.ls(self.root.path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _look(self, filesystem: Any, relative: str) -> dict[str, bool]:
        path = self._at(relative).path
        try:
            entries = filesystem.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {}
        for entry in entries:
            whole = entry["name"].rstrip("/")
            name = whole.rpartition("/")[2]
            # A file is listed as itself, and so is the empty object that some tools put for a folder of a store.
            if whole != path and name and not name.startswith("."):
                # A link is neither file nor folder in a listing.
                found[name] = entry["type"] == "directory" or (entry["type"] == "other" and filesystem.isdir(whole))
        return found

    def _guarded(self, relative: str, action: Any) -> Any:
        location = self._at(relative)
        try:
            return with_retries(lambda: action(self._given.filesystem(self.root)), f"reading {location.uri}")
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            reasons = {"missing": "does not exist", "denied": "may not be read; check the permissions and keys"}
            reason = reasons.get(classify(error), "cannot be read")
            raise self.refusal(f"{relative or 'the folder'} {reason} ({describe_error(error)}).") from error


def _read_file(filesystem: Any, path: str) -> bytes:
    """The bytes of a file; a pipe or a device, which a link may lead to, has no end."""
    if is_local(filesystem) and filesystem.exists(path) and not filesystem.isfile(path):
        raise FileNotFoundError(f"{path} is no regular file")
    return bytes(filesystem.cat_file(path))


def check_name(name: object) -> str:
    """A relative file name that stays where it is. Raises Refusal(LOCATION_DENIED), ANNOTATION_INVALID for no text."""
    if not isinstance(name, str):
        raise Refusal(RefusalReason.ANNOTATION_INVALID, f"the file name is {name!r}, not text"[:200])
    if _CONTROL.search(name) or any(part in ("", ".", "..") for part in name.split("/")):
        message = f"the file name {name[:200]!r} leads out of its folder; the data set names files inside it"
        raise Refusal(RefusalReason.LOCATION_DENIED, message)
    return name
