"""Every unit of the data sets, stored once in the order of sampling: later rounds need no annotation file."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ezigen.config import ConfigurationError
from tasks.datasets.units import SOURCES, UNIT_SCHEMA, Unit
from tasks.pairs.layout import IDENTITY, KIND, read_parquet, to_parquet
from tasks.pairs.sampling import group_hash
from tasks.storage.folder import OutputFolder

STORED_SCHEMA = pa.schema([pa.field("place", pa.uint64(), nullable=False), *UNIT_SCHEMA])
"""`place` is the hash that orders the units."""

_BITS = 6
_BUFFER_BYTES = 2**19
_PART_BYTES = 32 * 2**20


@dataclass(frozen=True)
class UnitNumbers:
    """What sampling needs to know of the units, in their order: 9 bytes for each."""

    source: npt.NDArray[np.int8]
    """Position in SOURCES."""
    num_candidates: npt.NDArray[np.int64]

    def of_source(self, source: str) -> npt.NDArray[np.int64]:
        """Where the units of a source stand."""
        return np.flatnonzero(self.source == SOURCES.index(source))

    def candidates(self, source: str) -> int:
        """How many pairs the source can give at most."""
        return int(self.num_candidates[self.of_source(source)].sum())


class UnitSpool:
    """Units in any order, sorted in a temporary folder of this machine; memory does not grow with their number.

    They are divided by the first bits of their hash, so that one part after the other can be sorted by itself.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._folder = tempfile.TemporaryDirectory(prefix="ezigen-units-")
        self._parts = [_Part(Path(self._folder.name) / f"{number}.arrow") for number in range(2**_BITS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self._parts:
            part.close()
        self._folder.cleanup()

    def add(self, unit: Unit) -> None:
        """One more unit."""
        place = group_hash(self._seed, unit.group_id)
        self._parts[place >> (64 - _BITS)].add({"place": place, **unit.to_row()}, len(unit.payload))

    def tables(self) -> Iterator[pa.Table]:
        """Everything that was added, ordered by (place, group_id). Raises ConfigurationError for a repeated group."""
        for part in self._parts:
            table = part.read().sort_by([("place", "ascending"), ("group_id", "ascending")])
            if len(table):
                _check_distinct(table.column("group_id"))
                yield table


def _check_distinct(ids: pa.ChunkedArray) -> None:
    """Raises ConfigurationError if a group occurs twice; equal ids have equal hashes and so stand side by side."""
    repeated = ids[1:].filter(pc.equal(ids[1:], ids[:-1]))
    if len(repeated):
        raise ConfigurationError(f"the data sets hold {repeated[0].as_py()!r} twice; every group needs its own id.")


class _Part:
    """One temporary file of record batches."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._num_bytes = 0
        self._writer: Any = None

    def add(self, row: dict[str, Any], num_bytes: int) -> None:
        self._rows.append(row)
        self._num_bytes += num_bytes
        if self._num_bytes > _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_file(str(self._path), STORED_SCHEMA)
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, STORED_SCHEMA))
        self._rows, self._num_bytes = [], 0

    def read(self) -> pa.Table:
        """The rows in the order of `add`; nothing can be added afterwards."""
        rest = pa.Table.from_pylist(self._rows, STORED_SCHEMA)
        self._rows = []
        if self._writer is None:
            return rest
        self.close()
        with pa.OSFile(str(self._path)) as file:
            return pa.concat_tables([pa.ipc.open_file(file).read_all(), rest])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def unit_path(number: int) -> str:
    """Where one part of the units lies."""
    return f"units/{number:05d}.parquet"


def store_units(
    output: OutputFolder, tables: Iterable[pa.Table], identity: str, check: Callable[[], None]
) -> list[dict[str, Any]]:
    """Stores sorted units in objects of about 32 MiB; returns path and rows of each."""
    stored: list[dict[str, Any]] = []
    metadata = {KIND: "units", IDENTITY: identity}
    for group in _merge(tables):
        check()
        path = unit_path(len(stored))
        output.write(path, to_parquet(group, STORED_SCHEMA, metadata))
        stored.append({"path": path, "rows": sum(len(table) for table in group)})
    return stored


def read_units(
    output: OutputFolder, parts: Iterable[Mapping[str, Any]], identity: str, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """The stored units, one part after the other. Raises ConfigurationError for a missing or damaged one."""
    for part in parts:
        try:
            yield read_parquet(output, part["path"], identity, columns)
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"{output.uri(part['path'])} is missing, which plan/plan.json lists; delete {output.root_uri} or "
                "choose another output."
            ) from error


def count_units(tables: Iterable[pa.Table]) -> UnitNumbers:
    """The numbers of units in the order of the tables."""
    sources, candidates = [np.zeros(0, np.int8)], [np.zeros(0, np.int64)]
    for table in tables:
        codes = pc.index_in(table.column("source"), pa.array(SOURCES))
        sources.append(codes.to_numpy().astype(np.int8))
        candidates.append(table.column("num_candidates").to_numpy().astype(np.int64))
    return UnitNumbers(np.concatenate(sources), np.concatenate(candidates))


def _merge(tables: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    group: list[pa.Table] = []
    for table in tables:
        group.append(table)
        if sum(one.nbytes for one in group) > _PART_BYTES:
            yield group
            group = []
    if group:
        yield group
