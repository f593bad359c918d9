"""What a worker says about a shard that it has made."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import xxhash

from tasks.storage.folder import OutputFolder
from tasks.storage.stored_file import StoredFile


@dataclass(frozen=True)
class ShardReport:
    """One finished shard: its files are stored, the completion object last."""

    shard: str
    rows: int
    refused: Mapping[str, int] = field(default_factory=dict)
    """Refused candidates by reason."""
    files: tuple[StoredFile, ...] = ()
    seconds: float = 0.0
    worker: str = ""
    """Node and process that made it; the engine fills it in."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What else a stage counts, such as rows by source."""

    def to_json(self) -> str:
        """For the way from a worker to the driver."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "files": tuple(StoredFile.from_json(stored) for stored in values["files"])})


def store_file(output: OutputFolder, path: str, data: bytes, rows: int) -> StoredFile:
    """Stores a file of a shard atomically."""
    output.write(path, data)
    return StoredFile(path, len(data), rows, xxhash.xxh3_128_hexdigest(data))
