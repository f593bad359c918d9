"""One object that a run has stored, as manifests list it."""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class StoredFile:
    """An object's path within its output, its size, its rows and the XXH3-128 of its bytes as 32 hex digits."""

    path: str
    num_bytes: int
    rows: int
    xxh3: str

    def to_json(self) -> dict[str, Any]:
        """As manifest.json holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The reverse. Raises KeyError or TypeError for anything else."""
        return cls(str(values["path"]), int(values["num_bytes"]), int(values["rows"]), str(values["xxh3"]))
