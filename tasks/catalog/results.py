"""The result row: what is stored about one item, and its Arrow schema."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa

from ezigen.config import ErrorCode, ItemError
from tasks.catalog.rows import Item, RowRefusal

Status = Literal["done", "failed"]

RESULTS_SCHEMA = pa.schema(
    [
        pa.field("item_key", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("finished_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("prompt", pa.string()),
        pa.field("subject_uri", pa.string()),
        pa.field("subject_class", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("image_uri", pa.string()),
        pa.field("image_sha256", pa.string()),
        pa.field("image_bytes", pa.int64()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("num_loops", pa.int32()),
        pa.field("stop_reason", pa.string()),
        pa.field("similarities", pa.list_(pa.float64())),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
        pa.field("num_unet_calls", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("worker", pa.string()),
        pa.field("preview", pa.binary()),
        pa.field("preview_panels", pa.int32()),
        pa.field("source_uri", pa.string()),
    ],
    metadata={"ezigen.schema": "results/1"},
)


@dataclass(frozen=True)
class ResultRow:
    """One attempt at one item. A stored row with status "done" means that its image is stored too."""

    item_key: str
    item_id: str
    row_index: int
    run_id: str
    status: Status
    attempts: int
    """Attempts so far, this one included: 1 for an item that was tried once."""
    finished_at: datetime
    prompt: str = ""
    subject_uri: str = ""
    subject_class: str = ""
    seed: int | None = None
    image_uri: str | None = None
    """Relative to the output's folder, so that the folder can be moved or served as it is."""
    image_sha256: str | None = None
    image_bytes: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    num_loops: int | None = None
    stop_reason: str | None = None
    similarities: tuple[float, ...] = ()
    scores: Mapping[str, float | None] = field(default_factory=dict)
    num_unet_calls: int = 0
    seconds: float = 0.0
    error_code: ErrorCode | None = None
    error_message: str | None = None
    worker: str = ""
    preview: bytes | None = None
    """One encoded picture: subject, sketch (of an edit its source), loops and result side by side, `preview_panels` of
    them.
    """
    preview_panels: int = 0
    source_uri: str | None = None
    """Of an edit, the picture that was edited."""


def failed_row(
    item: Item, error: ItemError, *, run_id: str, worker: str = "", seconds: float = 0.0, num_unet_calls: int = 0
) -> ResultRow:
    """The result row of an item that has no image."""
    row = item.row
    return ResultRow(
        item_key=item.item_key,
        item_id=row.item_id,
        row_index=row.index,
        run_id=run_id,
        status="failed",
        attempts=item.attempts + 1,
        finished_at=datetime.now(UTC),
        prompt=row.prompt,
        subject_uri=row.subject_uri,
        subject_class=row.subject_class,
        seed=row.seed,
        source_uri=row.source_uri,
        num_unet_calls=num_unet_calls,
        seconds=seconds,
        error_code=error.code,
        error_message=error.message,
        worker=worker,
    )


def refused_row(refusal: RowRefusal, *, run_id: str) -> ResultRow:
    """The result row of a catalog row that was wrong by itself."""
    return ResultRow(
        item_key=refusal.item_key,
        item_id=refusal.item_id,
        row_index=refusal.index,
        run_id=run_id,
        status="failed",
        attempts=refusal.attempts + 1,
        finished_at=datetime.now(UTC),
        prompt=refusal.prompt,
        subject_uri=refusal.subject_uri,
        subject_class=refusal.subject_class,
        error_code=refusal.code,
        error_message=refusal.message,
        worker="plan",
    )


def to_batch(rows: Iterable[ResultRow]) -> pa.RecordBatch:
    """Rows as Arrow, in the stored schema."""
    return pa.RecordBatch.from_pylist([_to_plain(row) for row in rows], schema=RESULTS_SCHEMA)


def from_batch(batch: pa.RecordBatch) -> Iterator[ResultRow]:
    """Rows from Arrow. Columns that were not read take their defaults; unknown ones are left out."""
    names = {f.name for f in fields(ResultRow)} & set(batch.schema.names)
    for values in batch.select(sorted(names)).to_pylist():
        yield _from_plain(values)


def _to_plain(row: ResultRow) -> dict[str, Any]:
    # Not `asdict`: it copies every value deeply, which took a third of the time of storing a row.
    return {**vars(row), "scores": list(row.scores.items()), "similarities": list(row.similarities)}


def _from_plain(values: dict[str, Any]) -> ResultRow:
    given = {name: value for name, value in values.items() if value is not None}
    if "scores" in given:
        given["scores"] = dict(given["scores"])
    if "similarities" in given:
        given["similarities"] = tuple(given["similarities"])
    if "error_code" in given:
        given["error_code"] = ErrorCode(given["error_code"])
    return ResultRow(**given)
