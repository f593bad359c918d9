"""Rows by the bytes that the index knows, straight into tensors: no Parquet is decoded on the way."""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from torch import Tensor

from ezigen.config import ConfigurationError
from tasks.features.block_pool import ALIGNMENT, BlockPool
from tasks.features.index import RowPlace
from tasks.storage.filesystems import http_status, with_retries
from tasks.storage.folder import OutputFolder
from tasks.storage.writing import is_local

# Gaps up to this size are read along; larger ones cost more than another request to the disk.
_MAX_GAP_BYTES = 64 * 2**10
# POSIX allows as many buffers in one call.
_MAX_BUFFERS = 1024
_PARALLEL_READS = 8

Piece = tuple[int, memoryview]
"""Bytes wanted: where they start behind the row's offset, and where they go."""


@dataclass(slots=True, eq=False)
class RawColumn:
    """One column of B rows: at `offset` of a block of bytes lie B slots of `longest` bytes, one per row.

    The first `lengths[b]` bytes of a slot are the row's value; the rest is zero.
    """

    block: Tensor
    offset: int
    longest: int
    lengths: Sequence[int]

    def slot(self, index: int) -> slice:
        """Where in the block a row's value lies."""
        start = self.offset + index * self.longest
        return slice(start, start + self.lengths[index])

    def as_tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) of a dtype, a view of the block; one length may be -1."""
        return tensors({"": self}, dtype, {"": shape})[""]

    def as_bytes(self) -> list[bytes]:
        """The values, copied; for small ones."""
        memory = self.block.numpy().data
        return [bytes(memory[self.slot(index)]) for index in range(len(self.lengths))]


def tensors(
    columns: Mapping[str, RawColumn], dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Columns of one block as (B, *shape) of a dtype, views of the block; the first length of a shape may be -1.

    One operation per tensor: with the caches full of what was just read, each costs microseconds.
    """
    if not shapes:
        return {}
    typed = columns[next(iter(shapes))].block.view(dtype)
    found = {}
    for name, (first, *rest) in shapes.items():
        column, width = columns[name], prod(rest)
        length = column.longest // (width * dtype.itemsize) if first < 0 else first
        strides = [prod(rest[index:]) for index in range(len(rest) + 1)]
        size = (len(column.lengths), length, *rest)
        found[name] = typed.as_strided(size, (length * width, *strides), column.offset // dtype.itemsize)
    return found


class RowReader:
    """Reads rows of one table. `file_sizes` (by shard) tells a file that was replaced or cut off.

    check: compare each whole row's XXH3 with the index's. None does so for what comes over a network, where it costs
    little beside the transfer; on a local disk it would cost a third of the speed.
    """

    def __init__(
        self,
        output: OutputFolder,
        table: str,
        columns: Sequence[str],
        file_sizes: Mapping[str, int],
        *,
        check: bool | None = None,
    ) -> None:
        self._output, self._table = output, table
        self._columns = {name: index for index, name in enumerate(columns)}
        self._file_sizes = file_sizes
        self._local = is_local(output.filesystem)
        self._check = not self._local if check is None else check
        self._pool = BlockPool()
        self._group: tuple[str, int, pa.RecordBatch] | None = None

    def read(self, places: Sequence[RowPlace], columns: Sequence[str]) -> dict[str, RawColumn]:
        """These columns of the rows at these places, in one allocation.

        Raises ConfigurationError, naming the shard, when a file is missing, cut off or damaged.
        """
        if any(not len(place.starts) for place in places):
            return self._read_gathered(places, columns)
        wanted = [self._columns[name] for name in columns]
        lengths = [[length[c] for c in wanted] for length in (place.lengths.tolist() for place in places)]
        read = _allocate(columns, lengths, self._pool)
        self._read_all(places, [_pieces(place, b, wanted, read) for b, place in enumerate(places)])
        return read

    def _read_all(self, places: Sequence[RowPlace], pieces: Sequence[list[Piece]]) -> None:
        if self._local or len(places) == 1:
            for place, wanted in zip(places, pieces, strict=True):
                self._read_row(place, wanted)
            return
        with ThreadPoolExecutor(min(_PARALLEL_READS, len(places)), thread_name_prefix="read-features") as pool:
            list(pool.map(self._read_row, places, pieces))

    def _read_row(self, place: RowPlace, pieces: list[Piece]) -> None:
        relative = f"{self._table}/{place.shard}.parquet"
        path = self._output.path(relative)
        try:
            if self._local:
                digest = _read_local(path, place, pieces, self._file_sizes.get(place.shard), checked=self._check)
            else:
                digest = _read_remote(self._output.filesystem, path, place, pieces, checked=self._check)
        except FileNotFoundError as error:
            raise damaged(self._output, relative, "it is missing") from error
        except _DamageError as error:
            raise damaged(self._output, relative, str(error)) from error
        if digest is not None and digest != place.xxh3:
            raise damaged(self._output, relative, f"the checksum of row group {place.row_group} differs")

    def _read_gathered(self, places: Sequence[RowPlace], columns: Sequence[str]) -> dict[str, RawColumn]:
        """Rows of row groups of several rows, through Parquet: for scans, where each group is read once."""
        read = [_row_values(self._read_group(place.shard, place.row_group), place.row, columns) for place in places]
        slots = _allocate(columns, [[len(value) for value in row] for row in read], self._pool)
        for b, row in enumerate(read):
            for column, value in zip(slots.values(), row, strict=True):
                column.block.numpy().data[column.slot(b)] = memoryview(value).cast("B")
        return slots

    def _read_group(self, shard: str, row_group: int) -> pa.RecordBatch:
        """A row group; the last one is kept, because a scan asks for it again and again."""
        # Several threads may read, so each looks at what it took, not at what is there by now.
        group = self._group
        if group is None or group[:2] != (shard, row_group):
            self._group = group = None  # two groups at once would be a waste
            rows = _read_group(self._output, f"{self._table}/{shard}.parquet", row_group)
            self._group = group = (shard, row_group, rows)
        return group[2]


class _DamageError(Exception):
    """What is wrong with a file's bytes."""


def damaged(output: OutputFolder, relative: str, what: str) -> ConfigurationError:
    """The error for an object that is not what was written."""
    return ConfigurationError(
        f"{output.uri(relative)} is damaged: {what}. Run precompute_features with verify on this store; it makes "
        "damaged shards again."
    )


def _allocate(columns: Sequence[str], lengths: Sequence[Sequence[int]], pool: BlockPool) -> dict[str, RawColumn]:
    """Room for values of these lengths (B, columns) in one aligned block, zero behind what is shorter than others."""
    by_column = list(zip(*lengths, strict=True)) or [()] * len(columns)
    longest = [max(own, default=0) for own in by_column]
    offsets = [0]
    for size in longest:
        offsets.append(offsets[-1] + -(-size * len(lengths) // ALIGNMENT) * ALIGNMENT)
    block = pool.take(offsets[-1])
    slots = {name: RawColumn(block, offsets[c], longest[c], by_column[c]) for c, name in enumerate(columns)}
    for column in slots.values():
        for index, length in enumerate(column.lengths):
            if length < column.longest:
                value = column.slot(index)
                block[value.stop : value.start + column.longest] = 0
    return slots


def _pieces(place: RowPlace, index: int, wanted: Sequence[int], slots: Mapping[str, RawColumn]) -> list[Piece]:
    """What to read for a row: its wanted columns, each into its slot."""
    memory = next(iter(slots.values())).block.numpy().data if slots else memoryview(b"")
    starts = place.starts.tolist()
    return [(starts[c], memory[column.slot(index)]) for c, column in zip(wanted, slots.values(), strict=True)]


def _read_local(
    path: str, place: RowPlace, pieces: list[Piece], file_size: int | None, *, checked: bool
) -> bytes | None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if file_size is not None and size != file_size:
            raise _DamageError(f"it has {size:,} bytes instead of {file_size:,}")
        digest = xxhash.xxh3_64() if checked else None
        for start, buffers in _runs(place.length, pieces, _MAX_GAP_BYTES if not checked else place.length):
            _fill(descriptor, place.offset + start, buffers)
            if digest is not None:
                for buffer in buffers:
                    digest.update(buffer)
    finally:
        os.close(descriptor)
    return None if digest is None else digest.digest()


def _read_remote(filesystem: Any, path: str, place: RowPlace, pieces: list[Piece], *, checked: bool) -> bytes | None:
    """One range request from the first to the last byte wanted; the whole row if it is to be checked."""
    first = 0 if checked else min(start for start, _ in pieces)
    end = place.length if checked else max(start + len(target) for start, target in pieces)
    try:
        data = with_retries(
            lambda: filesystem.cat_file(path, start=place.offset + first, end=place.offset + end), f"reading {path}"
        )
    except OSError as error:
        # What a store answers (416) to a range that begins behind the object's end.
        if error.errno != errno.EINVAL and http_status(error) != 416:
            raise
        raise _DamageError(f"it ends before byte {place.offset + first:,}") from error
    if len(data) != end - first:
        raise _DamageError(f"it ends {end - first - len(data):,} bytes too early")
    view = memoryview(data)
    for start, target in pieces:
        target[:] = view[start - first : start - first + len(target)]
    return xxhash.xxh3_64_digest(data) if checked else None


def _runs(length: int, pieces: list[Piece], max_gap: int) -> Iterator[tuple[int, list[memoryview]]]:
    """Stretches of the row to read, each with the buffers that take its bytes, one after the other.

    Gaps up to `max_gap` go to a scratch buffer. With the row's length as `max_gap` there is one stretch, the row.
    """
    whole = max_gap >= length
    start, position, buffers = 0, 0, list[memoryview]()
    for at, target in [*sorted(pieces, key=lambda piece: piece[0]), *([(length, memoryview(b""))] if whole else [])]:
        gap = at - position
        if gap > max_gap or (not buffers and not whole):
            if buffers:
                yield start, buffers
            start, buffers = at, []
        elif gap:
            buffers.append(memoryview(bytearray(gap)))
        buffers.append(target)
        position = at + len(target)
    if buffers:
        yield start, buffers


def _fill(descriptor: int, offset: int, buffers: Sequence[memoryview]) -> None:
    """Fills the buffers with what the file holds from `offset` on."""
    waiting = [buffer for buffer in buffers if len(buffer)]
    while waiting:
        count = os.preadv(descriptor, waiting[:_MAX_BUFFERS], offset)
        if not count:
            raise _DamageError(f"it ends before byte {offset + sum(len(buffer) for buffer in waiting):,}")
        offset += count
        while waiting and count >= len(waiting[0]):
            count -= len(waiting.pop(0))
        if count:
            waiting[0] = waiting[0][count:]


def _read_group(output: OutputFolder, relative: str, row_group: int) -> pa.RecordBatch:
    try:
        with output.filesystem.open(output.path(relative), "rb") as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            return file.read_row_group(row_group, use_threads=False).combine_chunks().to_batches()[0]
    except FileNotFoundError as error:
        raise damaged(output, relative, "it is missing") from error
    except (pa.ArrowException, OSError) as error:
        raise damaged(output, relative, str(error)) from error


def _row_values(batch: pa.RecordBatch, row: int, columns: Sequence[str]) -> list[Any]:
    return [_value_bytes(batch.column(name)[row]) for name in columns]


def _value_bytes(value: pa.Scalar) -> Any:
    buffer = value.as_buffer()
    return b"" if buffer is None else buffer
