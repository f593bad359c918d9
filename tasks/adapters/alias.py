"""An alias file: which version a word means now, and which ones it meant before."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Self

from ezigen.config import ConfigurationError
from tasks.adapters.reference import version_number
from tasks.storage import Location, OutputFolder
from tasks.storage.lease_stores import open_lease_store
from tasks.storage.run_record import now_text

MAX_EARLIER = 50


@dataclass(frozen=True)
class Move:
    """That an alias was pointed to a version, and when (ISO 8601 in UTC)."""

    version: str
    moved_at: str


@dataclass(frozen=True)
class AliasRecord:
    """The content of an alias file. `earlier` are the moves before this one, the oldest first."""

    version: str
    moved_at: str
    earlier: tuple[Move, ...] = ()

    def moved_to(self, version: str) -> Self:
        """The record after the next move."""
        earlier = (*self.earlier, Move(self.version, self.moved_at))[-MAX_EARLIER:]
        return replace(self, version=version, moved_at=now_text(), earlier=earlier)

    def has_meant(self, version: str) -> bool:
        """Whether it points, or ever pointed, to this version."""
        return version == self.version or any(move.version == version for move in self.earlier)

    def to_json(self) -> bytes:
        """UTF-8 JSON."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The reverse. Raises ValueError, TypeError or KeyError for anything else."""
        values = json.loads(data)
        if version_number(version := values["version"]) is None:
            raise ValueError(f"{version!r} is no version")  # it becomes a part of a path
        earlier = tuple(Move(str(move["version"]), str(move["moved_at"])) for move in values.get("earlier", ()))
        return cls(version, str(values["moved_at"]), earlier)


class AliasFile:
    """One alias of one adapter, changed by compare-and-swap: of two who move it at once, none overwrites unseen."""

    def __init__(self, shelf: OutputFolder, alias: str) -> None:
        location = Location(shelf.root.scheme, shelf.path(f"aliases/{alias}.json"))
        self._uri = location.uri
        self._store = open_lease_store(shelf.filesystem, location)

    def read(self) -> AliasRecord | None:
        """Where it points; None if there is no such alias. Raises ConfigurationError if the file is damaged."""
        return self._parse(self._store.read()[0])

    def move(self, version: str, unless: Callable[[AliasRecord], bool] = lambda _: False) -> AliasRecord:
        """Points it to a version, in one step for every reader, and returns where it points in the end.

        It stays where it is if it points there already, or if `unless` says so of its record.
        """
        while True:
            data, seen = self._store.read()
            record = self._parse(data)
            if record is not None and (record.version == version or unless(record)):
                return record
            moved = AliasRecord(version, now_text()) if record is None else record.moved_to(version)
            if self._store.swap(moved.to_json(), seen) is not None:
                return moved

    def _parse(self, data: bytes) -> AliasRecord | None:
        if not data:  # a process died before it wrote the very first content
            return None
        try:
            return AliasRecord.from_json(data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(
                f"{self._uri} is not an alias file ({type(error).__name__}: {error}); delete it, and point the alias "
                "again with `ezigen adapters promote`."
            ) from error
