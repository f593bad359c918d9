"""The output folder of a catalog run: its layout, its writers and its readers."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ezigen.images import SUFFIXES, ImageFormat
from tasks.catalog.results import ResultRow, from_batch, to_batch
from tasks.storage.folder import OutputFolder
from tasks.storage.shards import Shard, list_shards, read_shards

_KEY = re.compile(r"[0-9a-f]{32}")
ROW_GROUP_BYTES = 32 * 2**20
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class StoredImage:
    """An image that has been written. `uri` is relative to the output's folder."""

    uri: str
    sha256: str
    num_bytes: int


class RunOutput(OutputFolder):
    """Where one catalog's results live.

    run.json, images/<2 hex>/<item_key>.png (or .jpg, .webp), results/<run>-<shard>.parquet (written after its images),
    report.html.
    """

    def image_path(self, item_key: str, image_format: ImageFormat = "png") -> str:
        """Where an item's image lies, relative to the output. Made from key and format alone, never from an id."""
        if not _KEY.fullmatch(item_key):
            raise ValueError(f"not an item key: {item_key[:40]!r}")
        return f"images/{item_key[:2]}/{item_key}{SUFFIXES[image_format]}"

    @property
    def report_path(self) -> str:
        """Where the report lies, relative to the output."""
        return "report.html"

    def write_image(self, item_key: str, data: bytes, image_format: ImageFormat = "png") -> StoredImage:
        """Stores an item's image atomically; storing it again replaces it."""
        relative = self.image_path(item_key, image_format)
        self.write(relative, data)
        return StoredImage(uri=relative, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))

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


def _to_parquet(table: pa.Table) -> bytes:
    """Parquet in row groups of about ROW_GROUP_BYTES, so that readers can stream rows with previews."""
    rows_per_group = max(1000, int(ROW_GROUP_BYTES / max(table.nbytes / max(len(table), 1), 1)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=rows_per_group)
    return bytes(sink.getvalue())
