"""The output folder of a catalog run: its layout, its writers and its readers."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ezigen.config import ConfigurationError
from tasks.catalog.results import ResultRow, from_batch, to_batch
from tasks.storage.filesystems import describe_error, with_retries
from tasks.storage.locations import Location, Locations, locate
from tasks.storage.run_record import RunRecord
from tasks.storage.shards import Shard, list_shards, read_shards
from tasks.storage.writing import write_atomic

_KEY = re.compile(r"[0-9a-f]{32}")
ROW_GROUP_BYTES = 32 * 2**20
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class StoredImage:
    """An image that has been written. `uri` is relative to the output's folder."""

    uri: str
    sha256: str
    num_bytes: int


class RunOutput:
    """Where one catalog's results live. Small and picklable: every process opens its own filesystem.

    run.json, images/<2 hex>/<item_key>.png, results/<run>-<shard>.parquet (written after its images), report.html.
    """

    def __init__(self, root_uri: str, locations: Locations | None = None) -> None:
        self._locations = locations or Locations()
        self.root: Location = locate(root_uri)

    @property
    def root_uri(self) -> str:
        """The folder as people write it."""
        return self.root.uri

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

    def image_path(self, item_key: str) -> str:
        """Where an item's image lies, relative to the output. Made from the key alone, never from an id."""
        if not _KEY.fullmatch(item_key):
            raise ValueError(f"not an item key: {item_key[:40]!r}")
        return f"images/{item_key[:2]}/{item_key}.png"

    @property
    def report_path(self) -> str:
        """Where the report lies, relative to the output."""
        return "report.html"

    def read(self, relative: str) -> bytes:
        """The bytes of something inside the output. Raises FileNotFoundError."""
        filesystem, path = self.filesystem, self.path(relative)
        return bytes(with_retries(lambda: filesystem.cat_file(path), f"reading {self.uri(relative)}"))

    def write(self, relative: str, data: bytes) -> str:
        """Stores something inside the output atomically and returns its location."""
        write_atomic(self.filesystem, self.path(relative), data)
        return self.uri(relative)

    def write_image(self, item_key: str, png: bytes) -> StoredImage:
        """Stores an item's image atomically; storing it again replaces it."""
        relative = self.image_path(item_key)
        self.write(relative, png)
        return StoredImage(uri=relative, sha256=hashlib.sha256(png).hexdigest(), num_bytes=len(png))

    def write_results(self, run_id: str, shard_index: int, rows: Sequence[ResultRow]) -> str:
        """Stores one finished shard. From here on its items are done, so its images must have been stored before."""
        return self.write_shard(run_id, shard_index, pa.Table.from_batches([to_batch(rows)]))

    def write_shard(self, run_id: str, shard_index: int, table: pa.Table) -> str:
        """Stores rows in RESULTS_SCHEMA as one shard and returns its location."""
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError(f"not a run id: {run_id[:80]!r}")
        return self.write(f"results/{run_id}-{shard_index:06d}.parquet", _to_parquet(table))

    def list_results(self) -> list[Shard]:
        """The stored shards by name; unfinished writes are left out."""
        return list_shards(self.filesystem, self.path("results"))

    def read_results(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
    ) -> Iterator[pa.RecordBatch]:
        """Every stored attempt as Arrow, shard by shard; `ResultsLedger` resolves several attempts at one item.

        Raises ConfigurationError for a damaged shard, and names it.
        """
        for _, batches in self.read_shards(self.list_results(), None if filter is not None else columns):
            for batch in batches:
                selected = batch if filter is None else batch.filter(filter)
                yield selected if columns is None else selected.select(columns)

    def read_shards(
        self, shards: Sequence[Shard], columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Shard, Iterator[pa.RecordBatch]]]:
        """Some of the stored shards, each with its rows; see `tasks.storage.shards.read_shards`."""
        return read_shards(self.filesystem, shards, self.root.scheme, columns)

    def read_result_rows(self) -> Iterator[ResultRow]:
        """Every stored attempt as a ResultRow."""
        for batch in self.read_results():
            yield from from_batch(batch)

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


def _to_parquet(table: pa.Table) -> bytes:
    """Parquet in row groups of about ROW_GROUP_BYTES, so that readers can stream rows with previews."""
    rows_per_group = max(1000, int(ROW_GROUP_BYTES / max(table.nbytes / max(len(table), 1), 1)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=rows_per_group)
    return bytes(sink.getvalue())
