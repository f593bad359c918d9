"""A set of pairs in numbers, counted shard by shard in constant memory, and a random sample of it."""

import contextlib
import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ezigen.config import ConfigurationError
from tasks.pairs.layout import DEFECTS_PATH, check_identity, pairs_path, refusals_path
from tasks.reports.figures import SparseBins
from tasks.storage.filesystems import describe_error
from tasks.storage.folder import OutputFolder

NUMBER_COLUMNS = ("pair_id", "source", "subject_class", "flipped", "mask_share", "frame_distance", "caption")
SAMPLE_COLUMNS = (
    "pair_id", "source", "subject_class", "caption", "subject", "subject_mask", "target", "target_box", "size_px",
    "mask_share", "frame_distance",
)  # fmt: skip
_PICTURES = ("subject", "subject_mask", "target")
_AREA_BIN = 1 / 1024


@dataclass
class PairsSurvey:
    """Counts over all pairs and refusals."""

    by_source: Counter[str] = field(default_factory=Counter)
    by_class: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(source, subject class)"""
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(source, reason)"""
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)
    """reason -> the first refused candidate by id, and its message"""
    areas: dict[str, SparseBins] = field(default_factory=dict)
    """By source: share of the picture that the subject covers."""
    distances: SparseBins = field(default_factory=lambda: SparseBins(1.0))
    column_bytes: Counter[str] = field(default_factory=Counter)
    """Stored bytes of the picture columns; "other" is the rest of the shards."""
    num_flipped: int = 0
    num_shards: int = 0
    sample: "Sample" = field(default_factory=lambda: Sample(0))

    def add_pairs(self, shard: str, batch: pa.RecordBatch) -> None:
        """Counts rows with NUMBER_COLUMNS."""
        rows = batch.to_pydict()
        self.by_source.update(rows["source"])
        self.by_class.update(zip(rows["source"], rows["subject_class"], strict=True))
        self.num_flipped += sum(rows["flipped"])
        sources = np.array(rows["source"])
        shares = np.array(rows["mask_share"], float)
        for source in np.unique(sources).tolist():
            self.areas.setdefault(source, SparseBins(_AREA_BIN)).add(shares[sources == source])
        distances = np.array([value for value in rows["frame_distance"] if value is not None], float)
        self.distances.add(distances)
        for pair_id in rows["pair_id"]:
            self.sample.offer(shard, pair_id)

    def add_refusals(self, batch: pa.RecordBatch) -> None:
        """Counts rows of REFUSALS_SCHEMA."""
        for row in batch.select(["source", "reason"]).to_pylist():
            self.refused[row["source"], row["reason"]] += 1
        self.add_examples(batch)

    def add_examples(self, batch: pa.RecordBatch) -> None:
        """Keeps the first of each reason, and counts nothing."""
        for row in batch.select(["pair_id", "reason", "message"]).to_pylist():
            example = (row["pair_id"], row["message"])
            self.examples[row["reason"]] = min(self.examples.get(row["reason"], example), example)

    def add_sizes(self, file: Any, num_bytes: int) -> None:
        """Counts what a shard's columns take."""
        found: Counter[str] = Counter()
        for group in range(file.metadata.num_row_groups):
            columns = file.metadata.row_group(group)
            for number in range(columns.num_columns):
                column = columns.column(number)
                if column.path_in_schema in _PICTURES:
                    found[column.path_in_schema] += column.total_compressed_size
        found["other"] = num_bytes - found.total()
        self.column_bytes.update(found)
        self.num_shards += 1

    @property
    def refused_by_reason(self) -> Counter[str]:
        """Refused candidates of all sources."""
        found: Counter[str] = Counter()
        for (_, reason), count in self.refused.items():
            found[reason] += count
        return found


class Sample:
    """The pairs whose ids have the smallest digests: random, and the same whatever the order."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[tuple[int, str, str]] = []

    def offer(self, shard: str, pair_id: str) -> None:
        """Takes a pair if its turn comes before that of others."""
        if not self._size:
            return
        digest = hashlib.blake2b(pair_id.encode(errors="surrogatepass"), digest_size=8, person=b"card").digest()
        entry = (-int.from_bytes(digest, "big"), shard, pair_id)
        if len(self._kept) < self._size:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def pairs(self) -> list[tuple[str, str]]:
        """(shard, pair_id), in the order of the digests."""
        return [(shard, pair_id) for _, shard, pair_id in sorted(self._kept, reverse=True)]


def survey_pairs(
    output: OutputFolder, shards: tuple[str, ...], identity: str, sample_size: int, *, has_defects: bool = False
) -> PairsSurvey:
    """Counts the stored shards among these; of listed defects of annotations it takes examples.

    Raises ConfigurationError for a damaged object, naming it.
    """
    survey = PairsSurvey(sample=Sample(sample_size))
    sizes = output.list("pairs")
    for shard in shards:
        num_bytes = sizes.get(f"{shard}.parquet")
        if num_bytes is None:
            continue
        with _open(output, pairs_path(shard), identity) as file:
            survey.add_sizes(file, num_bytes)
            for batch in file.iter_batches(batch_size=4096, columns=list(NUMBER_COLUMNS), use_threads=False):
                survey.add_pairs(shard, batch)
        with _open(output, refusals_path(shard), identity) as file:
            for batch in file.iter_batches(batch_size=4096, use_threads=False):
                survey.add_refusals(batch)
    if has_defects:
        with _open(output, DEFECTS_PATH, identity) as file:
            for batch in file.iter_batches(batch_size=4096, use_threads=False):
                survey.add_examples(batch)
    return survey


def read_sample(output: OutputFolder, pairs: list[tuple[str, str]], identity: str) -> Iterator[dict[str, Any]]:
    """The rows of these pairs (SAMPLE_COLUMNS), in their order; one row group at a time is in memory."""
    found: dict[str, dict[str, Any]] = {}
    wanted = {shard: {pair_id for other, pair_id in pairs if other == shard} for shard, _ in pairs}
    for shard, ids in wanted.items():
        with _open(output, pairs_path(shard), identity) as file:
            for group in range(file.metadata.num_row_groups):
                column = file.read_row_group(group, columns=["pair_id"]).column(0).to_pylist()
                places = [place for place, pair_id in enumerate(column) if pair_id in ids]
                if places:
                    rows = file.read_row_group(group, columns=list(SAMPLE_COLUMNS)).take(places).to_pylist()
                    found.update({row["pair_id"]: row for row in rows})
    yield from (found[pair_id] for _, pair_id in pairs if pair_id in found)


@contextlib.contextmanager
def _open(output: OutputFolder, path: str, identity: str) -> Iterator[Any]:
    """One shard as a ParquetFile; what is wrong with it while it is open becomes a ConfigurationError."""
    try:
        with output.filesystem.open(output.path(path), "rb") as source, pq.ParquetFile(source) as file:
            check_identity(output.uri(path), file.schema_arrow, identity)
            yield file
    except (pa.ArrowException, OSError) as error:
        raise ConfigurationError(
            f"{output.uri(path)} cannot be read ({describe_error(error)}); "
            "delete it and run again: the shard is then built again."
        ) from error
