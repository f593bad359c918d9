"""Result shards as objects: listing them, reading their rows as Arrow, and saying which one is damaged."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ezigen.config import ConfigurationError
from tasks.catalog.results import RESULTS_SCHEMA
from tasks.storage.filesystems import classify, describe_error, with_retries
from tasks.storage.keys import words_from_hex
from tasks.storage.locations import Location
from tasks.storage.writing import is_local, is_temporary

# Below this size one request for the whole object is cheaper than several for the columns that are needed.
WHOLE_OBJECT_BYTES = 8 * 2**20
ROWS_PER_BATCH = 65_536
_PARALLEL_READS = 8


@dataclass(frozen=True)
class Shard:
    """One stored object of result rows."""

    path: str
    num_bytes: int


def list_shards(filesystem: Any, folder: str) -> list[Shard]:
    """The shards of a folder by name; unfinished writes are left out. A folder that is absent holds none."""
    try:
        found = with_retries(lambda: filesystem.ls(folder, detail=True), f"listing {folder}")
    except FileNotFoundError:
        return []
    shards = [
        Shard(entry["name"], int(entry["size"] or 0))
        for entry in found
        if entry["type"] == "file" and entry["name"].endswith(".parquet") and not is_temporary(entry["name"])
    ]
    return sorted(shards, key=lambda shard: shard.path)


def read_shards(
    filesystem: Any, shards: Sequence[Shard], scheme: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[Shard, Iterator[pa.RecordBatch]]]:
    """Each shard with its rows in RESULTS_SCHEMA (or these columns of it); small ones are fetched ahead of time.

    Raises FileNotFoundError for a shard that has vanished and ConfigurationError, naming it, for a damaged one; both
    while its rows are read.
    """
    schema = RESULTS_SCHEMA if columns is None else pa.schema([RESULTS_SCHEMA.field(name) for name in columns])
    for shard, open_source in _sources(filesystem, shards):
        yield shard, _named(_batches(open_source, schema), Location(scheme, shard.path).uri)


def _sources(filesystem: Any, shards: Sequence[Shard]) -> Iterator[tuple[Shard, Callable[[], Any]]]:
    """Each shard with a function that opens it. On an object store the next ones are on their way meanwhile."""

    def fetch(shard: Shard) -> Any:
        if is_local(filesystem) or shard.num_bytes > WHOLE_OBJECT_BYTES:
            return filesystem.open(shard.path, "rb")
        return pa.BufferReader(with_retries(lambda: filesystem.cat_file(shard.path), f"reading {shard.path}"))

    if is_local(filesystem):
        yield from ((shard, partial(fetch, shard)) for shard in shards)
        return
    waiting = iter(shards)
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="read-shards") as pool:
        ahead = deque((shard, pool.submit(fetch, shard)) for shard in islice(waiting, 2 * _PARALLEL_READS))
        while ahead:
            shard, future = ahead.popleft()
            ahead.extend((later, pool.submit(fetch, later)) for later in islice(waiting, 1))
            yield shard, future.result


def _batches(open_source: Callable[[], Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows in the wanted schema; a column that an older version did not write is null."""
    with open_source() as source, pq.ParquetFile(source, pre_buffer=False) as file:
        stored = set(file.schema_arrow.names)  # made anew by every look at it
        present = [name for name in schema.names if name in stored]
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=present, use_threads=False):
            columns = [
                batch.column(field.name).cast(field.type) if field.name in present else pa.nulls(len(batch), field.type)
                for field in schema
            ]
            _check_required(schema, columns)
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _check_required(schema: pa.Schema, columns: Sequence[pa.Array]) -> None:
    for field, column in zip(schema, columns, strict=True):
        if column.null_count and not field.nullable:
            raise ValueError(f"the column {field.name} is missing or has gaps")
        if field.name == "item_key":
            words_from_hex(column)


def _named(batches: Iterator[pa.RecordBatch], uri: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (pa.ArrowException, OSError, ValueError) as error:
        if not isinstance(error, pa.ArrowException) and classify(error) != "permanent":
            raise
        raise ConfigurationError(
            f"{uri} is not a readable result shard ({describe_error(error)}). Restore it from a backup, or delete it: "
            "the next run then makes its items again."
        ) from error
