"""A folder that a run writes into, on any store."""

from typing import Any

from ezigen.config import ConfigurationError
from tasks.storage.filesystems import describe_error, with_retries
from tasks.storage.locations import Location, Locations, locate
from tasks.storage.run_record import RunRecord
from tasks.storage.traffic import TRAFFIC
from tasks.storage.writing import is_temporary, write_atomic


class OutputFolder:
    """Where a run's objects live. Small and picklable: every process opens its own filesystem."""

    def __init__(self, root_uri: str, locations: Locations | None = None) -> None:
        self._locations = locations or Locations()
        self.root: Location = locate(root_uri)

    @property
    def root_uri(self) -> str:
        """The folder as people write it."""
        return self.root.uri

    @property
    def name(self) -> str:
        """The last part of its location: what people call a run that writes here."""
        return self.root.path.rstrip("/").rpartition("/")[2]

    @property
    def locations(self) -> Locations:
        """The storage options it was opened with, for what lies elsewhere in the same store."""
        return self._locations

    @property
    def filesystem(self) -> Any:
        """The filesystem, built in this process."""
        return self._locations.filesystem(self.root)

    def path(self, relative: str) -> str:
        """The filesystem's path of something inside the output."""
        return f"{self.root.path}/{relative}"

    def uri(self, relative: str) -> str:
        """The location of something inside the output, for people and links."""
        return Location(self.root.scheme, self.path(relative)).uri

    def read(self, relative: str) -> bytes:
        """The bytes of something inside the output. Raises FileNotFoundError."""
        filesystem, path = self.filesystem, self.path(relative)
        return TRAFFIC.read(bytes(with_retries(lambda: filesystem.cat_file(path), f"reading {self.uri(relative)}")))

    def write(self, relative: str, data: bytes) -> str:
        """Stores something inside the output atomically and returns its location."""
        write_atomic(self.filesystem, self.path(relative), data)
        return self.uri(relative)

    def list(self, folder: str) -> dict[str, int]:
        """Size in bytes by file name of what one folder of the output holds, unfinished writes left out."""
        filesystem, path = self.filesystem, self.path(folder)

        def look() -> Any:
            filesystem.invalidate_cache(path)
            return filesystem.ls(path, detail=True)

        try:
            entries = with_retries(look, f"listing {self.uri(folder)}")
        except FileNotFoundError:
            return {}
        files = (entry for entry in entries if entry["type"] == "file" and not is_temporary(entry["name"]))
        return dict(sorted((entry["name"].rpartition("/")[2], int(entry["size"] or 0)) for entry in files))

    def write_run(self, record: RunRecord) -> str:
        """Stores run.json."""
        return self.write("run.json", record.to_json())

    def read_run(self) -> RunRecord | None:
        """run.json, or None if there was no run yet. Raises ConfigurationError if it cannot be understood."""
        try:
            return RunRecord.from_json(self.read("run.json"))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{self.uri('run.json')} cannot be read ({describe_error(error)}); "
                "rename it, and the run will write a new one."
            ) from error
