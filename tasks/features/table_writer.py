"""One Parquet file of a shard, written row by row so that each row's bytes lie side by side."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tasks.features.identity import FeatureIdentity
from tasks.features.index import INDEX_SCHEMA
from tasks.features.schema import table_schema
from tasks.features.streamed_file import StreamedFile
from tasks.storage.folder import OutputFolder
from tasks.storage.stored_file import StoredFile

Value = str | bytes | Tensor
"""A text, bytes, or a tensor on the CPU whose bytes are stored as they lie in memory."""


@dataclass(frozen=True)
class _Row:
    id: str
    lengths: list[int]


class TableWriter:
    """Writes subjects, latents or texts of a shard and remembers where each row lies.

    With `row_group_bytes` 0 every row is a row group with one page per column: its columns follow each other in the
    file, and each column's bytes end where the next one's page header begins. Otherwise rows are gathered.
    """

    def __init__(
        self, output: OutputFolder, identity: FeatureIdentity, table: str, shard: str, *, row_group_bytes: int = 0
    ) -> None:
        self.table, self._shard = table, shard
        self.schema = table_schema(table, identity)
        self._file = StreamedFile(output, f"{table}/{shard}.parquet")
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._file, mode="w"),
            self.schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        self._file.take_part()
        self._row_group_bytes = row_group_bytes
        self._waiting: list[pa.Table] = []
        self._rows: list[_Row] = []
        self._group_sizes: list[int] = []
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        """Rows so far."""
        return len(self._rows)

    def add(self, row_id: str, values: Sequence[Value]) -> None:
        """Appends a row: the values of the columns after the id, in the schema's order."""
        columns = [_column(field.type, value) for field, value in zip(self.schema, [row_id, *values], strict=True)]
        self._rows.append(_Row(row_id, [_num_bytes(value) for value in (row_id, *values)]))
        self._waiting.append(pa.Table.from_arrays(columns, schema=self.schema))
        if sum(row.nbytes for row in self._waiting) >= self._row_group_bytes:
            self._write_group()

    def store(self) -> tuple[StoredFile, pa.Table]:
        """Puts the file in its place; returns it with the rows of the shard's index that belong to it."""
        self._write_group()
        self._writer.close()
        self._file.write_out()
        index = self._index(pq.read_metadata(self._file.local_path))
        return self._file.store(len(self._rows)), index

    def discard(self) -> None:
        """Forgets everything that was not stored."""
        # Arrow finishes a file that it still holds open whenever it is collected, so it does so now; a full disk is
        # no reason to fail here.
        with suppress(pa.ArrowException, OSError):
            self._writer.close()
        self._file.discard()

    def _write_group(self) -> None:
        if not self._waiting:
            return
        rows, self._waiting = pa.concat_tables(self._waiting), []
        self._writer.write_table(rows, row_group_size=len(rows))
        self._group_sizes.append(len(rows))
        self._digests.append(self._file.take_part())

    def _index(self, footer: pq.FileMetaData) -> pa.Table:
        rows = iter(self._rows)
        found = [
            self._index_row(footer.row_group(group), next(rows), group, row)
            for group, size in enumerate(self._group_sizes)
            for row in range(size)
        ]
        return pa.Table.from_pylist(found, schema=INDEX_SCHEMA)

    def _index_row(
        self, group: pq.RowGroupMetaData, row: _Row, group_index: int, row_in_group: int
    ) -> dict[str, object]:
        chunks = [group.column(i) for i in range(group.num_columns)]
        offset = chunks[0].data_page_offset
        ends = [chunk.data_page_offset + chunk.total_compressed_size - offset for chunk in chunks]
        alone = group.num_rows == 1
        return {
            "table": self.table,
            "id": row.id,
            "shard": self._shard,
            "row_group": group_index,
            "row": row_in_group,
            "offset": offset,
            "length": ends[-1],
            "xxh3": self._digests[group_index],
            # A page of one required value is its header and then the value, to the last byte.
            "starts": [end - length for end, length in zip(ends, row.lengths, strict=True)] if alone else [],
            "lengths": row.lengths if alone else [],
        }


def _column(kind: pa.DataType, value: Value) -> pa.Array:
    """An array with one value, without copying a tensor."""
    if isinstance(value, str):
        return pa.array([value], kind)
    data = pa.py_buffer(value.view(torch.uint8).view(-1).numpy() if isinstance(value, Tensor) else value)
    if pa.types.is_fixed_size_binary(kind):
        if data.size != kind.byte_width:
            raise ValueError(f"{data.size} bytes for a column of {kind.byte_width}")
        return pa.FixedSizeBinaryArray.from_buffers(kind, 1, [None, data])
    return pa.LargeBinaryArray.from_buffers(kind, 1, [None, pa.array([0, data.size], pa.int64()).buffers()[1], data])


def _num_bytes(value: Value) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return value.nbytes if isinstance(value, Tensor) else len(value)
