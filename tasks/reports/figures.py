"""The figures of an output: counted row by row in constant memory, whatever the number of rows."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_BINS = 4096
_SECONDS_BIN = 1 / 1024
_SCORE_BIN = 1 / 4096
_FIGURE_COLUMNS = (
    "run_id",
    "status",
    "finished_at",
    "num_loops",
    "stop_reason",
    "scores",
    "num_unet_calls",
    "seconds",
    "error_code",
)


class SparseBins:
    """Counts of real values in bins of one width, which doubles whenever more than `max_bins` of them are in use.

    `max_bins` is at least 2, because bins on either side of zero never merge.
    The result depends neither on the order of the values nor on how they were divided into calls.
    """

    def __init__(self, width: float, max_bins: int = MAX_BINS) -> None:
        self.width = width
        self._max_bins = max_bins
        self._counts: Counter[int] = Counter()

    def add(self, values: np.ndarray[Any, Any]) -> None:
        """Count finite `values`."""
        indexes, counts = np.unique(np.floor(values / self.width).astype(np.int64), return_counts=True)
        self._counts.update(dict(zip(indexes.tolist(), counts.tolist(), strict=True)))
        while len(self._counts) > self._max_bins:
            self._coarsen()

    def _coarsen(self) -> None:
        merged: Counter[int] = Counter()
        for index, count in self._counts.items():
            merged[index // 2] += count
        self._counts, self.width = merged, self.width * 2

    def items(self) -> list[tuple[float, int]]:
        """(lower edge, count) of every bin in use, ascending."""
        return [(index * self.width, count) for index, count in sorted(self._counts.items())]

    @property
    def total(self) -> int:
        """How many values were counted."""
        return self._counts.total()

    def quantile(self, share: float) -> float | None:
        """The value below which `share` of the counted ones lie, to within a bin; None when nothing was counted."""
        wanted, seen = share * self.total, 0
        for edge, count in self.items():
            if count and seen + count >= wanted:
                return edge + self.width * max(wanted - seen, 0.0) / count
            seen += count
        return None


@dataclass
class RunFigures:
    """What one run added to the output. Times are seconds since 1970, UTC."""

    run_id: str
    num_done: int = 0
    num_failed: int = 0
    first_at: float = np.inf
    last_at: float = -np.inf
    done_at: SparseBins = field(default_factory=lambda: SparseBins(1.0))
    failed_at: SparseBins = field(default_factory=lambda: SparseBins(1.0))

    @property
    def num_rows(self) -> int:
        """Rows of either status."""
        return self.num_done + self.num_failed

    def add(self, failed: np.ndarray[Any, Any], finished_at: np.ndarray[Any, Any]) -> None:
        """Count rows of this run."""
        self.num_failed += int(failed.sum())
        self.num_done += int((~failed).sum())
        self.first_at = min(self.first_at, float(finished_at.min()))
        self.last_at = max(self.last_at, float(finished_at.max()))
        self.done_at.add(finished_at[~failed])
        self.failed_at.add(finished_at[failed])


@dataclass
class Figures:
    """The figures of an output's rows. One row counts per item: the one of its latest attempt."""

    num_done: int = 0
    num_failed: int = 0
    sum_unet_calls: int = 0
    sum_seconds: float = 0.0
    sum_loops: int = 0
    failed_by_code: Counter[str] = field(default_factory=Counter)
    loops: Counter[int] = field(default_factory=Counter)
    stop_reasons: Counter[str] = field(default_factory=Counter)
    seconds: SparseBins = field(default_factory=lambda: SparseBins(_SECONDS_BIN))
    scores: dict[str, SparseBins] = field(default_factory=dict)
    score_sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    runs: dict[str, RunFigures] = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        """Items with a row of either status."""
        return self.num_done + self.num_failed

    @property
    def mean_seconds(self) -> float | None:
        """Seconds of work per image; None without images."""
        return self.sum_seconds / self.num_done if self.num_done else None

    @property
    def mean_unet_calls(self) -> float | None:
        """UNet evaluations per image; None without images."""
        return self.sum_unet_calls / self.num_done if self.num_done else None

    @property
    def mean_loops(self) -> float | None:
        """Loops per image; None without images that say so."""
        num_images = self.loops.total()
        return self.sum_loops / num_images if num_images else None

    @property
    def mean_scores(self) -> Mapping[str, float]:
        """Mean of every score over the images that have it."""
        return {name: self.score_sums[name] / bins.total for name, bins in sorted(self.scores.items())}

    def add(self, batch: pa.RecordBatch) -> None:
        """Count resolved rows; columns as in the results schema."""
        failed = _failed(batch)
        self._add_runs(batch, failed)
        self.failed_by_code.update(_counts(batch.column("error_code").filter(pa.array(failed))))
        self.num_failed += int(failed.sum())
        self._add_done(batch.filter(pa.array(~failed)))

    def _add_runs(self, batch: pa.RecordBatch, failed: np.ndarray[Any, Any]) -> None:
        finished_at = _epoch_seconds(batch.column("finished_at"))
        run_ids = batch.column("run_id")
        for run_id in pc.unique(run_ids).to_pylist():
            rows = pc.equal(run_ids, run_id).to_numpy(zero_copy_only=False)
            self.runs.setdefault(run_id, RunFigures(run_id)).add(failed[rows], finished_at[rows])

    def _add_done(self, batch: pa.RecordBatch) -> None:
        self.num_done += batch.num_rows
        self.sum_unet_calls += pc.sum(batch.column("num_unet_calls")).as_py() or 0
        seconds = _finite(batch.column("seconds"))
        self.seconds.add(seconds)
        self.sum_seconds += float(seconds.sum())
        self.stop_reasons.update(_counts(batch.column("stop_reason")))
        loops = _counts(batch.column("num_loops"))
        self.loops.update(loops)
        self.sum_loops += sum(num_loops * count for num_loops, count in loops.items())
        self._add_scores(batch.column("scores"))

    def _add_scores(self, scores: pa.MapArray) -> None:
        entries = pc.list_flatten(scores.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.float64())]))))
        names, values = entries.field("key"), entries.field("value")
        for name in pc.unique(names).to_pylist():
            found = _finite(values.filter(pc.equal(names, name)))
            if found.size:
                self.scores.setdefault(name, SparseBins(_SCORE_BIN)).add(found)
                self.score_sums[name] += float(found.sum())


def count_rows(batches: Iterable[pa.RecordBatch]) -> Figures:
    """The figures of resolved rows."""
    figures = Figures()
    for batch in batches:
        if batch.num_rows:
            figures.add(batch)
    return figures


def figure_columns() -> list[str]:
    """The columns that `Figures.add` reads."""
    return list(_FIGURE_COLUMNS)


def to_datetime(epoch_s: float) -> datetime:
    """Seconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(epoch_s, UTC)


def _failed(batch: pa.RecordBatch) -> np.ndarray[Any, Any]:
    failed: np.ndarray[Any, Any] = pc.equal(batch.column("status"), "failed").to_numpy(zero_copy_only=False)
    return failed.astype(bool)


def _counts(values: pa.Array) -> dict[Any, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values.drop_null()).to_pylist()}


def _finite(values: pa.Array) -> np.ndarray[Any, Any]:
    numbers = values.drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
    finite: np.ndarray[Any, Any] = numbers[np.isfinite(numbers)]
    return finite


def _epoch_seconds(times: pa.Array) -> np.ndarray[Any, Any]:
    micros = times.cast(pa.int64()).to_numpy(zero_copy_only=False)
    seconds: np.ndarray[Any, Any] = micros.astype(np.float64) / 1e6
    return seconds
