"""The results ledger: what is known about every item that was ever tried on an output."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ezigen.config import ErrorCode
from tasks.catalog.results import RESULTS_SCHEMA, ResultRow, from_batch
from tasks.storage.keys import KeyTable
from tasks.storage.output import RunOutput
from tasks.storage.resolution import IDENTITY_COLUMNS, Identity, identify, resolve

CODES = tuple(ErrorCode)
"""Error codes by number; NO_CODE stands for none, or for one that a newer version wrote."""
NO_CODE = 255

_MEASURED_COLUMNS = ("num_unet_calls", "seconds", "image_bytes")
_MAX_RESTARTS = 5


@dataclass(frozen=True)
class Measured:
    """Sums over the rows that are done: what an image has cost so far."""

    num_images: int = 0
    num_unet_calls: int = 0
    seconds: float = 0.0
    image_bytes: int = 0


@dataclass(frozen=True)
class ResolvedKeys:
    """One entry per item_key, in the order of `table`; about 30 bytes each."""

    table: KeyTable
    done: npt.NDArray[np.bool_]
    attempts: npt.NDArray[np.int32]
    finished_us: npt.NDArray[np.int64]
    codes: npt.NDArray[np.uint8]
    measured: Measured

    def __len__(self) -> int:
        return len(self.table)


@dataclass(frozen=True)
class LedgerCounts:
    """Items by their resolved state."""

    done: int
    failed: int
    failed_by_code: Mapping[str, int]


class ResultsLedger:
    """One resolved row per item_key, as of the first look; make a new ledger to look again.

    `tasks.storage.resolution.resolve` says which of several rows counts.
    """

    def __init__(self, output: RunOutput) -> None:
        self._output = output

    @cached_property
    def resolved(self) -> ResolvedKeys:
        """The compact view that plans are made from. Raises ConfigurationError for a damaged shard."""
        for _ in range(_MAX_RESTARTS):
            try:
                return _resolve(self._output)
            except FileNotFoundError:
                # A compaction replaced shards while they were read.
                continue
        return _resolve(self._output)

    def done_keys(self) -> KeyTable:
        """Keys of the items that have an image."""
        return self._keys_where(self.resolved.done)

    def failed_keys(self) -> KeyTable:
        """Keys of the items that have none."""
        return self._keys_where(~self.resolved.done)

    def counts(self) -> LedgerCounts:
        """Items by state, failed ones also by error code."""
        resolved = self.resolved
        failed = resolved.codes[~resolved.done]
        numbers = np.bincount(failed, minlength=NO_CODE + 1)
        by_code = {code.value: int(numbers[i]) for i, code in enumerate(CODES) if numbers[i]}
        if numbers[NO_CODE]:
            by_code["unknown"] = int(numbers[NO_CODE])
        return LedgerCounts(done=len(resolved) - len(failed), failed=len(failed), failed_by_code=by_code)

    def rows(
        self, status: Literal["done", "failed"] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[ResultRow]:
        """The resolved rows in storage order, one at a time. Columns that are not asked for have their defaults."""
        needed = None if columns is None else sorted({*columns, *_required_columns()})
        for batch in self.batches(status, needed):
            yield from from_batch(batch)

    def batches(
        self, status: Literal["done", "failed"] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The resolved rows as Arrow; memory does not grow with the number of shards."""
        names = RESULTS_SCHEMA.names if columns is None else list(columns)
        emitted = np.zeros(len(self.resolved), np.bool_)
        for batch in self._surviving_batches(sorted({*names, *IDENTITY_COLUMNS})):
            chosen = _choose(self.resolved, batch, emitted)
            selected = batch.take(pa.array(chosen))
            if status is not None:
                selected = selected.filter(pc.equal(selected.column("status"), status))
            if len(selected):
                yield selected.select(names)

    def _keys_where(self, mask: npt.NDArray[np.bool_]) -> KeyTable:
        return KeyTable(self.resolved.table.words[mask])

    def _surviving_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Every stored row at least once, even while shards are merged and deleted under the reader."""
        read: set[str] = set()
        vanished = True
        while vanished:
            vanished = False
            shards = [shard for shard in self._output.list_results() if shard.path not in read]
            for shard, batches in self._output.read_shards(shards, columns):
                read.add(shard.path)
                try:
                    yield from batches
                except FileNotFoundError:
                    vanished = True


def _required_columns() -> list[str]:
    return [field.name for field in RESULTS_SCHEMA if not field.nullable]


def _resolve(output: RunOutput) -> ResolvedKeys:
    parts: list[tuple[Any, ...]] = []
    measured = Measured()
    columns = (*IDENTITY_COLUMNS, "error_code", *_MEASURED_COLUMNS)
    for _, batches in output.read_shards(output.list_results(), columns):
        for batch in batches:
            parts.append((*identify(batch), _codes(batch)))
            measured = _add_measured(measured, batch)
    if not parts:
        nothing = pa.RecordBatch.from_pylist([], schema=RESULTS_SCHEMA)
        parts.append((*identify(nothing), _codes(nothing)))
    return _resolve_parts(parts, measured)


def _codes(batch: pa.RecordBatch) -> npt.NDArray[np.uint8]:
    numbers = pc.index_in(batch.column("error_code"), pa.array([code.value for code in CODES]))
    codes: npt.NDArray[np.uint8] = pc.fill_null(numbers, NO_CODE).to_numpy(zero_copy_only=False).astype(np.uint8)
    return codes


def _resolve_parts(parts: list[tuple[Any, ...]], measured: Measured) -> ResolvedKeys:
    *columns, codes = (np.concatenate(column) for column in zip(*parts, strict=True))
    parts.clear()
    rows = Identity(*columns)
    kept = resolve(rows)
    table = KeyTable(rows.words[kept])
    return ResolvedKeys(table, rows.done[kept], rows.attempts[kept], rows.finished_us[kept], codes[kept], measured)


def _add_measured(sums: Measured, batch: pa.RecordBatch) -> Measured:
    done = batch.filter(pc.equal(batch.column("status"), "done"))
    calls, seconds, size = (pc.sum(done.column(name)).as_py() or 0 for name in _MEASURED_COLUMNS)
    return Measured(
        sums.num_images + len(done), sums.num_unet_calls + calls, sums.seconds + seconds, sums.image_bytes + size
    )


def _choose(resolved: ResolvedKeys, batch: pa.RecordBatch, emitted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Positions in the batch of the rows that the ledger resolved to and that were not passed on before."""
    if not len(resolved):
        return np.empty(0, np.int64)
    row = identify(batch)
    at = resolved.table.find(row.words)
    winner = (at >= 0) & ~emitted[at] & (resolved.done[at] == row.done)
    winner &= (resolved.attempts[at] == row.attempts) & (resolved.finished_us[at] == row.finished_us)
    positions = np.flatnonzero(winner)
    # A row may stand twice in one shard; its first one is passed on.
    _, first = np.unique(at[positions], return_index=True)
    chosen = positions[np.sort(first)]
    emitted[at[chosen]] = True
    return chosen
