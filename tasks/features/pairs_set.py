"""A finished set of pairs as precompute_features reads it: its shards, their ids, their rows."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ezigen.config import ConfigurationError
from tasks.pairs.layout import pairs_path
from tasks.pairs.manifest import PairsManifest
from tasks.sharding import ShardReport
from tasks.storage.filesystems import classify, describe_error, with_retries
from tasks.storage.folder import OutputFolder
from tasks.storage.locations import Locations
from tasks.storage.stored_file import StoredFile
from tasks.storage.writing import is_local

T = TypeVar("T")

_PARALLEL_READS = 8


class DamagedPairs(RuntimeError):  # noqa: N818
    """A stored shard of pairs is not what was written. The message names it and says what to do."""


@dataclass(frozen=True)
class PairsSet:
    """A set of pairs that build_pairs has finished. Small and picklable; opens nothing by itself."""

    folder: OutputFolder
    shards: Mapping[str, StoredFile]
    """By name, in the order of names: the file that holds the pairs."""
    digest: str
    """Of the files' checksums: another one means other pairs, or others in the same shard."""

    @classmethod
    def open(cls, uri: str, locations: Locations | None = None) -> "PairsSet":
        """The set at a location. Raises ConfigurationError if there is none, or an unfinished one."""
        folder = OutputFolder(uri, locations)
        try:
            manifest = PairsManifest.load(folder)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{folder.uri('manifest.json')} is not that of a set of pairs; give the folder that build_pairs wrote."
            ) from error
        if manifest is None:
            raise ConfigurationError(_no_pairs(folder))
        files = {report.shard: _pairs_file(report) for report in manifest.reports}
        shards = dict(sorted(files.items()))
        if not any(file.rows for file in shards.values()):
            raise ConfigurationError(f"{uri} holds no pairs; its card says why they were refused. Build others.")
        return cls(folder, shards, _digest(shards))

    @property
    def num_pairs(self) -> int:
        """As the manifest says."""
        return sum(file.rows for file in self.shards.values())

    def uri(self, shard: str) -> str:
        """The location of a shard, for people."""
        return self.folder.uri(self.shards[shard].path)

    def read_columns(self, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """Some small columns of every shard in order, several shards at a time.

        Raises ConfigurationError for a shard that is damaged or has another number of rows than the manifest says.
        """

        def read(shard: str) -> tuple[str, pa.Table]:
            with self._open(shard, columns) as file:
                table = self._reading(shard, lambda: file.read(columns=list(columns), use_threads=False))
            if len(table) != self.shards[shard].rows:
                reason = f"{len(table)} rows, but {self.shards[shard].rows} were written"
                raise DamagedPairs(self._damaged(shard, reason))
            return shard, table

        try:
            yield from _map_ahead(read, list(self.shards))
        except DamagedPairs as error:
            raise ConfigurationError(str(error)) from error

    def read_rows(self, shard: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """A shard's rows, a row group at a time. Raises DamagedPairs."""
        with self._open(shard, columns) as file:
            for group in range(file.num_row_groups):
                table = self._reading(
                    shard,
                    lambda group=group: file.read_row_group(  # type: ignore[misc]
                        group, columns=list(columns), use_threads=False
                    ),
                )
                yield from table.to_batches()

    def damaged(self, shard: str, reason: str) -> DamagedPairs:
        """The error for a shard that is not what was written."""
        return DamagedPairs(self._damaged(shard, reason))

    def _open(self, shard: str, columns: Sequence[str]) -> Any:
        """The Parquet file; on an object store no more is asked for than what is read."""
        filesystem, path = self.folder.filesystem, self.folder.path(self.shards[shard].path)
        options = {} if is_local(filesystem) else {"cache_type": "none"}

        def open_file() -> Any:
            source = filesystem.open(path, "rb", **options)
            return pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)

        file = self._reading(shard, open_file)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise DamagedPairs(self._damaged(shard, f"the column {missing[0]} is missing"))
        return file

    def _reading(self, shard: str, action: Callable[[], T]) -> T:
        try:
            return with_retries(action, f"reading {self.uri(shard)}")
        except (pa.ArrowException, OSError) as error:
            if not isinstance(error, pa.ArrowException) and classify(error) not in ("permanent", "missing"):
                raise
            raise DamagedPairs(self._damaged(shard, describe_error(error))) from error

    def _damaged(self, shard: str, reason: str) -> str:
        remedy = "Restore it, or delete it and run build_pairs, which makes it again."
        return f"{self.uri(shard)} is damaged: {reason}. {remedy}"


def _pairs_file(report: ShardReport) -> StoredFile:
    return next(file for file in report.files if file.path == pairs_path(report.shard))


def _digest(shards: Mapping[str, StoredFile]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, file in shards.items():
        digest.update(f"{name}={file.rows},{file.num_bytes},{file.xxh3}\n".encode())
    return digest.hexdigest()


def _no_pairs(folder: OutputFolder) -> str:
    if folder.list("pairs"):
        return f"the pairs at {folder.root_uri} are not finished (no manifest.json); run build_pairs there again."
    return f"there are no pairs at {folder.root_uri}; give the folder or s3:// prefix that build_pairs wrote."


def _map_ahead(function: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
    """The values in order; a few of the next ones are computed meanwhile."""
    waiting = iter(names)
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="read-pairs") as pool:
        ahead = deque(pool.submit(function, name) for name in islice(waiting, 2 * _PARALLEL_READS))
        while ahead:
            done = ahead.popleft()
            ahead.extend(pool.submit(function, name) for name in islice(waiting, 1))
            yield done.result()
