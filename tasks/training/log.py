"""What every train step was: log/<first>-<last>.parquet, and the same for TensorBoard, with the sample sheets.

A segment is written before the checkpoint of its last step, so the log reaches at least as far as the newest
checkpoint. All columns but `finished_at` are equal however often the run was interrupted.
"""

import contextlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ezigen.config import ConfigurationError
from tasks.inspection.sheet import to_jpeg
from tasks.storage.filesystems import describe_error, with_retries
from tasks.storage.folder import OutputFolder

if TYPE_CHECKING:
    from ezigen.training import StepReport

FOLDER = "log"
TENSORBOARD = "tensorboard"
SHEET_TAG = "validation/samples"
"""What TensorBoard calls the sample sheets."""
SOURCES = ("coco", "youtube_vis")
"""As ezigen.training.batch.SOURCES, which costs torch."""

WALL_COLUMNS = ("finished_at",)
"""What differs from one run of the same configuration to the next."""

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("grad_norm", pa.float64(), nullable=False),
        pa.field("lr", pa.float64(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        *(pa.field(f"loss_{source}", pa.float64()) for source in SOURCES),
        *(pa.field(f"samples_{source}", pa.int64(), nullable=False) for source in SOURCES),
        pa.field("finished_at", pa.timestamp("ms", "UTC"), nullable=False),
    ]
)
"""One row per step, counted from 1. loss is the objective; loss_<source> is the unweighted mean over the samples of one
source, null where the batch has none."""

_SEGMENT = re.compile(r"(\d{8,})-(\d{8,})\.parquet")
_EVENTS = re.compile(r"events\.out\.tfevents\.(\d{8,})(?:-(\d{8,}))?\..*")


class RunLog:
    """The log of one run. Its first worker writes, anybody reads."""

    def __init__(self, output: OutputFolder) -> None:
        self._output = output
        self._waiting: list[dict[str, Any]] = []

    def add(self, report: "StepReport") -> None:
        """One more step, kept until `flush`."""
        by_source = zip(SOURCES, report.loss_by_source, report.samples_by_source, strict=True)
        row = {name: getattr(report, name) for name in ("step", "loss", "grad_norm", "lr", "samples")}
        for source, loss, count in by_source:
            row |= {f"loss_{source}": loss if count else None, f"samples_{source}": count}
        self._waiting.append(row | {"finished_at": datetime.now(UTC)})

    def flush(self) -> None:
        """Stores the steps since the last time as one segment; without any, does nothing."""
        if not self._waiting:
            return
        first, last = self._waiting[0]["step"], self._waiting[-1]["step"]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._waiting, SCHEMA), sink, compression="zstd")
        self._output.write(f"{FOLDER}/{first:08d}-{last:08d}.parquet", bytes(sink.getvalue()))
        self._write_events(f"{first:08d}-{last:08d}", [(row["step"], _scalars(row)) for row in self._waiting])
        self._waiting.clear()

    def add_measurement(self, step: int, numbers: Mapping[str, float], sheet: Image.Image | None = None) -> None:
        """Stores what was measured after a step, for TensorBoard; pages and tables have it from validation/."""
        scalars = {f"validation/{name}": value for name, value in numbers.items()}
        self._write_events(f"{step:08d}", [(step, scalars)], {} if sheet is None else {step: sheet})

    def remove_after(self, step: int) -> None:
        """Deletes every segment that reaches beyond a step, the last one first, and forgets what was not stored."""
        self._waiting.clear()
        for folder, pattern in ((FOLDER, _SEGMENT), (TENSORBOARD, _EVENTS)):
            for name in sorted(self._output.list(folder), reverse=True):
                match = pattern.fullmatch(name)
                if match and int(match[2] or match[1]) > step:
                    self._remove(f"{folder}/{name}")

    # ---- TensorBoard

    def _write_events(
        self,
        steps: str,
        scalars: Sequence[tuple[int, Mapping[str, float]]],
        sheets: Mapping[int, Image.Image] = MappingProxyType({}),
    ) -> None:
        """One file per segment: TensorBoard reads a folder's files by name, and object stores cannot append."""
        from tensorboardX import SummaryWriter

        with tempfile.TemporaryDirectory(prefix="ezigen-events-") as folder:
            with contextlib.closing(SummaryWriter(folder)) as writer:
                for step, values in scalars:
                    for name, value in values.items():
                        writer.add_scalar(name, value, step)
                for step, sheet in sheets.items():
                    writer.file_writer.add_summary(_sheet_summary(sheet), step)
            [path] = Path(folder).iterdir()
            self._output.write(f"{TENSORBOARD}/events.out.tfevents.{steps}.ezigen", path.read_bytes())

    def _remove(self, relative: str) -> None:
        filesystem, path = self._output.filesystem, self._output.path(relative)
        with contextlib.suppress(FileNotFoundError):
            with_retries(lambda: filesystem.rm_file(path), f"deleting {self._output.uri(relative)}")


def read_log(output: OutputFolder) -> pa.Table:
    """All steps in order, with SCHEMA. Raises ConfigurationError for a damaged segment."""
    names = sorted(name for name in output.list(FOLDER) if _SEGMENT.fullmatch(name))
    return pa.concat_tables([SCHEMA.empty_table(), *(_read(output, f"{FOLDER}/{name}") for name in names)])


def read_recent(output: OutputFolder, num_steps: int) -> pa.Table:
    """The last steps of the log, without reading the rest of it."""
    tables: list[pa.Table] = []
    for name in sorted((name for name in output.list(FOLDER) if _SEGMENT.fullmatch(name)), reverse=True):
        if sum(len(table) for table in tables) >= num_steps:
            break
        tables.append(_read(output, f"{FOLDER}/{name}"))
    whole = pa.concat_tables([SCHEMA.empty_table(), *reversed(tables)])
    return whole.slice(max(0, len(whole) - num_steps))


def _read(output: OutputFolder, relative: str) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(output.read(relative)))
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError) as error:
        raise ConfigurationError(
            f"{output.uri(relative)} is not a readable part of a training log ({describe_error(error)}); delete it: "
            "only charts need it."
        ) from error


def _sheet_summary(sheet: Image.Image) -> Any:
    """A sheet as TensorBoard's message; as a JPEG, which `add_image` would make ten times larger as a PNG."""
    from tensorboardX.proto.summary_pb2 import Summary

    width, height = sheet.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=to_jpeg(sheet))
    return Summary(value=[Summary.Value(tag=SHEET_TAG, image=image)])


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    names = ("loss", "grad_norm", "lr", *(f"loss_{source}" for source in SOURCES))
    return {f"train/{name}": row[name] for name in names if row[name] is not None}
