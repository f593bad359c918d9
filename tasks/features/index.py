"""Where every stored row lies: which file, which bytes, and what their checksum is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.storage.keys import KeyTable, Words, words_from_hex, words_to_hex

INDEX_SCHEMA = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("xxh3", pa.binary(8), nullable=False),
        pa.field("starts", pa.list_(pa.field("element", pa.uint32(), nullable=False)), nullable=False),
        pa.field("lengths", pa.list_(pa.field("element", pa.uint32(), nullable=False)), nullable=False),
    ]
)
"""One row per stored row of subjects, latents and texts.

offset, length, xxh3: the bytes of its row group and their XXH3-64, big-endian. row: its number in the row group.
starts, lengths: by column, where the value's bytes lie behind `offset`; empty in row groups of several rows.
"""


# Below this a look-up one by one is faster than sorting the questions.
_FEW = 64


@dataclass(frozen=True)
class RowPlace:
    """Where one row lies in the file of its shard."""

    shard: str
    row_group: int
    row: int
    offset: int
    length: int
    xxh3: bytes
    starts: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.uint32]


class TableIndex:
    """The index of one table, sorted by id: 60 to 200 bytes per row in memory."""

    def __init__(self, rows: pa.Table) -> None:
        """rows: in INDEX_SCHEMA, of one table, sorted by id."""
        rows = rows.combine_chunks()
        self._keys = KeyTable(_words(rows.column("id")))
        self._upper = np.ascontiguousarray(self._keys.words[:, 0])
        shards = _whole(rows.column("shard").dictionary_encode())
        self.shards: tuple[str, ...] = tuple(shards.dictionary.to_pylist())
        self._shard = shards.indices.to_numpy()
        self._row_group, self._row, self._offset, self._length = (
            rows.column(name).to_numpy() for name in ("row_group", "row", "offset", "length")
        )
        self._xxh3 = np.frombuffer(b"".join(rows.column("xxh3").to_pylist()), "V8")
        self._starts, self._lengths = (_matrix(rows, name) for name in ("starts", "lengths"))

    def __len__(self) -> int:
        """Rows."""
        return len(self._keys)

    def find(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The position of each id, or -1; also for what is no id at all."""
        if len(ids) < _FEW:
            return np.array([self._find_one(one) for one in ids], np.int64)
        good = [i for i, one in enumerate(ids) if is_id(one)]
        found = np.full(len(ids), -1, np.int64)
        if good:
            found[good] = self._keys.find(words_from_hex(pa.array([ids[i] for i in good], pa.string())))
        return found

    def _find_one(self, one: str) -> int:
        if not is_id(one):
            return -1
        words, upper, lower = self._keys.words, int(one[:16], 16), int(one[16:], 16)
        position = int(self._upper.searchsorted(np.uint64(upper)))
        while position < len(words) and int(words[position, 0]) == upper:
            if int(words[position, 1]) == lower:
                return position
            position += 1
        return -1

    def ids(self, positions: npt.NDArray[np.int64] | None = None) -> list[str]:
        """The ids at these positions, or all of them in order."""
        return words_to_hex(self._keys.words if positions is None else self._keys.words[positions])

    def place(self, position: int) -> RowPlace:
        """Where a row lies."""
        return RowPlace(
            shard=self.shards[self._shard[position]],
            row_group=int(self._row_group[position]),
            row=int(self._row[position]),
            offset=int(self._offset[position]),
            length=int(self._length[position]),
            xxh3=self._xxh3[position].tobytes(),
            starts=self._starts[position],
            lengths=self._lengths[position],
        )

    def stored_order(self, shard: str) -> npt.NDArray[np.int64]:
        """Positions of a shard's rows in the order of its file."""
        if shard not in self.shards:
            return np.empty(0, np.int64)
        inside = np.flatnonzero(self._shard == self.shards.index(shard))
        order = np.lexsort((self._row[inside], self._row_group[inside]))
        return inside[order].astype(np.int64)


def merge_index(parts: Sequence[pa.Table]) -> pa.Table:
    """The store's index of its shards' ones, sorted by table and id; of a repeated id the first shard's row counts."""
    rows = pa.concat_tables([INDEX_SCHEMA.empty_table(), *parts])
    keys = [("table", "ascending"), ("id", "ascending"), ("shard", "ascending")]
    rows = rows.take(pc.sort_indices(rows, sort_keys=keys))
    if not len(rows):
        return rows
    table, row_id = (_whole(rows.column(name)) for name in ("table", "id"))
    later = pc.and_(pc.equal(table[1:], table[:-1]), pc.equal(row_id[1:], row_id[:-1]))
    return rows.filter(pa.concat_arrays([pa.array([True]), pc.invert(later)]))


def is_id(text: str) -> bool:
    """Whether a text is 32 lower-case hex digits."""
    return len(text) == 32 and not text.strip("0123456789abcdef")


def _words(column: pa.ChunkedArray) -> Words:
    return words_from_hex(_whole(column)) if len(column) else np.empty((0, 2), np.uint64)


def _matrix(rows: pa.Table, name: str) -> npt.NDArray[np.uint32]:
    column = _whole(rows.column(name))
    sizes = column.value_lengths().to_numpy()
    # Where rows are gathered, one that is left alone in the last row group has places; its neighbours have none.
    if not len(rows) or sizes.min() != sizes.max():
        return np.empty((len(rows), 0), np.uint32)
    flat: npt.NDArray[np.uint32] = column.flatten().to_numpy()
    return flat.reshape(len(rows), -1)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
