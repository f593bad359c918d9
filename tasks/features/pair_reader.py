"""What one shard of pairs gives to the networks: decoded pictures and texts in batches, in stored order."""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from ezigen.config import ItemError
from ezigen.images import decode_picture
from ezigen.models import to_pixels
from ezigen.pairs import Box, cut_target
from tasks.features.ownership import KINDS, Kind, ShardOwnership
from tasks.features.pair_ids import ID_COLUMNS, find_ids
from tasks.features.pairs_set import PairsSet
from tasks.features.schema import SAMPLE_COLUMNS
from tasks.storage.locations import Locations, locate

_SAMPLES_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in (*SAMPLE_COLUMNS, "source")])
_PICTURE_COLUMNS = ("pair_id", "source", "subject", "target", "target_uri")
_MAX_SIDE_PX, _MAX_PIXELS = 2**16, 2**30
"""Of the sources of targets; build_pairs has decoded them all."""


@dataclass(frozen=True, eq=False)
class Subjects:
    """Subject pictures (3, H, W) in [-1, 1] with their ids and classes, and their masks (H, W), if asked for."""

    ids: list[str]
    subject_classes: list[str]
    pictures: list[Tensor]
    masks: list[Tensor] | None


@dataclass(frozen=True, eq=False)
class Targets:
    """Target pictures (3, H, W) in [-1, 1] with their ids."""

    ids: list[str]
    pictures: list[Tensor]


@dataclass(frozen=True, eq=False)
class Texts:
    """Captions with their ids."""

    ids: list[str]
    texts: list[str]


Batch = Subjects | Targets | Texts


class ReferenceLost(RuntimeError):  # noqa: N818
    """A picture that pairs refer to cannot be read any more, or is another one now. The message names it and says what
    to do.
    """


@dataclass
class PairReader:
    """Reads a shard once. `batches` gives what the shard owns; afterwards `samples` has a row for every pair."""

    pairs: PairsSet
    shard: str
    owned: ShardOwnership
    batch_size: int
    decoders: Executor
    with_masks: bool = False
    locations: Locations = field(default_factory=Locations)
    """How sources of targets that are stored by reference are reached."""

    def __post_init__(self) -> None:
        self._samples: list[pa.Table] = []
        self._waiting: dict[Kind, list[tuple[str, Any]]] = {kind: [] for kind in KINDS}

    @property
    def samples(self) -> pa.Table:
        """pair_id, the three ids, source."""
        return pa.concat_tables([_SAMPLES_SCHEMA.empty_table(), *self._samples])

    def batches(self) -> Iterator[Batch]:
        """Up to `batch_size` subjects, targets or texts at a time. Raises DamagedPairs, ReferenceLost."""
        owns = {kind: self.owned.rows(kind) for kind in KINDS}
        columns = [*_PICTURE_COLUMNS, *(["subject_mask", "mask_sha256"] if self.with_masks else []), *ID_COLUMNS]
        start = 0
        for rows in self.pairs.read_rows(self.shard, list(dict.fromkeys(columns))):
            if start + len(rows) > self.owned.num_pairs:
                break
            here = {kind: flags[start : start + len(rows)] for kind, flags in owns.items()}
            yield from self._take(rows, here)
            start += len(rows)
        if start != self.owned.num_pairs:
            reason = f"it does not have the {self.owned.num_pairs} pairs that the plan counts"
            raise self.pairs.damaged(self.shard, reason)
        for kind in KINDS:
            if self._waiting[kind]:
                yield self._to_batch(kind)

    def _take(self, rows: pa.RecordBatch, owns: dict[Kind, Any]) -> Iterator[Batch]:
        ids = find_ids(rows)
        columns = [rows.column("pair_id"), *(pa.array(ids[kind], pa.string()) for kind in KINDS), rows.column("source")]
        self._samples.append(pa.Table.from_arrays(columns, schema=_SAMPLES_SCHEMA))
        prepare = {"subjects": self._prepare_subject, "targets": self._prepare_target, "texts": self._prepare_text}
        for index in range(len(rows)):
            for kind in KINDS:
                if owns[kind][index]:
                    self._waiting[kind].append((ids[kind][index], prepare[kind](rows, index)))
                    if len(self._waiting[kind]) == self.batch_size:
                        yield self._to_batch(kind)

    # ---- what is prepared for a batch: futures of decoded pictures, texts as they are

    def _prepare_subject(self, rows: pa.RecordBatch, index: int) -> tuple[str, Future[Tensor], Future[Tensor] | None]:
        row = _Row(rows, index)
        picture = self._decode(row, "subject", "subject_sha256", _read_picture)
        mask = self._decode(row, "subject_mask", "mask_sha256", read_mask) if self.with_masks else None
        return row.text("subject_class"), picture, mask

    def _prepare_target(self, rows: pa.RecordBatch, index: int) -> Future[Tensor]:
        row = _Row(rows, index)
        if row.value("target_sha256") is None:
            return self.decoders.submit(self._cut_reference, row)
        return self._decode(row, "target", "target_sha256", _read_picture)

    @staticmethod
    def _prepare_text(rows: pa.RecordBatch, index: int) -> str:
        return _Row(rows, index).text("caption")

    def _decode(self, row: "_Row", column: str, checksum: str, read: Callable[[bytes, int], Tensor]) -> Future[Tensor]:
        data, wanted, size_px = row.value(column), row.text(checksum), int(row.value("size_px"))

        def decode() -> Tensor:
            if data is None or hashlib.sha256(data).hexdigest() != wanted:
                raise self.pairs.damaged(self.shard, f"the {column} of pair {row.text('pair_id')} has another checksum")
            try:
                return read(data, size_px)
            except (ItemError, OSError, ValueError) as error:
                reason = f"the {column} of pair {row.text('pair_id')} cannot be used ({error})"
                raise self.pairs.damaged(self.shard, reason) from error

        return self.decoders.submit(decode)

    def _cut_reference(self, row: "_Row") -> Tensor:
        """A target from the picture it is a part of, as build_pairs would have stored it, but for its compression."""
        uri, crop = row.text("target_uri"), Box.from_list(row.value("target_crop"))
        # The operator's own data set: pairs name the very pictures that build_pairs was allowed to read.
        folder = locate(uri).parent.uri
        allowed = replace(self.locations, allowed_roots=(folder,), base_uri=folder)
        try:
            data = allowed.read_bytes(uri)
            if hashlib.sha256(data).hexdigest() != row.text("target_source_sha256"):
                raise ReferenceLost(
                    f"the target of pair {row.text('pair_id')} is cut from {uri}, which is another picture now (its "
                    "SHA-256 is not the one in the pair's row). Put the data set back, or build the pairs again."
                )
            picture = decode_picture(data, max_side_px=_MAX_SIDE_PX, max_pixels=_MAX_PIXELS)
        except ItemError as error:
            raise ReferenceLost(
                f"the target of pair {row.text('pair_id')} is not where it was: {error}. Put the data set back, or "
                "build the pairs with pairs.targets=embed."
            ) from error
        return to_pixels(cut_target(picture.rgb, crop, int(row.value("size_px"))))

    # ---- batches

    def _to_batch(self, kind: Kind) -> Batch:
        waiting, self._waiting[kind] = self._waiting[kind], []
        ids, prepared = [row_id for row_id, _ in waiting], [one for _, one in waiting]
        if kind == "texts":
            return Texts(ids, prepared)
        if kind == "targets":
            return Targets(ids, [picture.result() for picture in prepared])
        pictures = [picture.result() for _, picture, _ in prepared]
        masks = [mask.result() for _, _, mask in prepared] if self.with_masks else None
        return Subjects(ids, [name for name, _, _ in prepared], pictures, masks)


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of a batch; a value is copied only if it is asked for."""

    rows: pa.RecordBatch
    index: int

    def value(self, column: str) -> Any:
        return self.rows.column(column)[self.index].as_py()

    def text(self, column: str) -> str:
        return str(self.value(column))


def _read_picture(data: bytes, size_px: int) -> Tensor:
    picture = decode_picture(data).rgb
    _check_size(picture.size, size_px)
    return to_pixels(picture)


def read_mask(data: bytes, size_px: int) -> Tensor:
    """A stored mask (H, W), non-zero = subject. Raises OSError or ValueError for anything else."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as mask:
        _check_size(mask.size, size_px)
        return torch.from_numpy(np.array(mask.convert("L")))


def _check_size(size: Sequence[int], size_px: int) -> None:
    if tuple(size) != (size_px, size_px):
        raise ValueError(f"it is {size[0]} x {size[1]} px, not {size_px} px square")
