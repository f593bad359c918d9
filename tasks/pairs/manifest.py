"""What is known of finished shards: records beside their refusals, and manifest.json over all of them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ezigen.config import ConfigurationError
from tasks.pairs.layout import IDENTITY, MANIFEST_PATH, pairs_path, read_json, refusals_path, take_kind, write_json
from tasks.sharding import ShardReport
from tasks.storage.folder import OutputFolder
from tasks.storage.stored_file import StoredFile

RECORD = "ezigen.pairs"
"""Metadata of a shard's refusals: the StoredFile of its pairs and their counts. Pairs are the same bytes whenever they
are built, so that what is written before them can vouch for them."""

_KIND, _VERSION = "pairs", 1
_PARALLEL_READS = 16


def record_metadata(pairs: StoredFile, counts: Mapping[str, int], refused: Mapping[str, int]) -> dict[str, str]:
    """The record of a shard, as metadata of its refusals."""
    return {RECORD: json.dumps({"file": pairs.to_json(), "counts": dict(counts), "refused": dict(refused)})}


def read_reports(
    output: OutputFolder, shards: Sequence[str], identity: str
) -> Iterator[tuple[str, ShardReport | None]]:
    """What finished shards hold, by their records, in order; None for one whose record does not fit its pairs."""
    sizes = output.list("pairs")
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="records") as pool:
        reports = pool.map(lambda shard: _read_report(output, shard, sizes, identity), shards)
        yield from zip(shards, reports, strict=True)


def _read_report(output: OutputFolder, shard: str, sizes: Mapping[str, int], identity: str) -> ShardReport | None:
    path = refusals_path(shard)
    try:
        data = output.read(path)
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            metadata = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
            num_refused = file.metadata.num_rows
        record = json.loads(metadata[RECORD])
        pairs = StoredFile.from_json(record["file"])
    except (FileNotFoundError, KeyError, ValueError, pa.ArrowException):
        return None
    if metadata.get(IDENTITY) != identity or sizes.get(f"{shard}.parquet") != pairs.num_bytes:
        return None
    own = StoredFile(path, len(data), num_refused, xxhash.xxh3_128_hexdigest(data))
    return ShardReport(shard, pairs.rows, record["refused"], (own, pairs), counts=record["counts"])


@dataclass(frozen=True)
class PairsManifest:
    """The content of manifest.json: written when nothing is left to do."""

    identity: str
    reports: tuple[ShardReport, ...]
    defects: StoredFile | None = None
    """What is wrong with the annotations, which belongs to no shard."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the pairs of each shard."""
        return {
            report.shard: stored.num_bytes
            for report in self.reports
            for stored in report.files
            if stored.path == pairs_path(report.shard)
        }

    def store(self, output: OutputFolder) -> str:
        """Writes manifest.json."""
        built, refused = sum_counts(self.reports)
        values = {
            "kind": _KIND,
            "version": _VERSION,
            "identity": {"digest": self.identity},
            "rows": sum(report.rows for report in self.reports),
            "counts": {"built": dict(built), "refused": dict(refused)},
            "annotations": None if self.defects is None else self.defects.to_json(),
            "shards": [_to_entry(report) for report in self.reports],
        }
        return write_json(output, MANIFEST_PATH, values)

    @classmethod
    def load(cls, output: OutputFolder) -> Self | None:
        """The manifest that the output holds, if any. Raises ConfigurationError if it cannot be understood."""
        values = read_json(output, MANIFEST_PATH)
        if values is None:
            return None
        try:
            values = take_kind(values, _KIND, _VERSION)
            defects = values.get("annotations")
            return cls(
                values["identity"]["digest"],
                tuple(_from_entry(entry) for entry in values["shards"]),
                None if defects is None else StoredFile.from_json(defects),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{output.uri(MANIFEST_PATH)} is no manifest of pairs ({error!r}); choose another output."
            ) from error


def sum_counts(reports: Sequence[ShardReport]) -> tuple[Counter[str], Counter[str]]:
    """Pairs by source, and refusals by reason."""
    built: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for report in reports:
        built.update(report.counts)
        refused.update(report.refused)
    return built, refused


def _to_entry(report: ShardReport) -> dict[str, Any]:
    return {
        "name": report.shard,
        "rows": report.rows,
        "counts": dict(report.counts),
        "refused": dict(report.refused),
        "files": [stored.to_json() for stored in report.files],
    }


def _from_entry(entry: Mapping[str, Any]) -> ShardReport:
    files = tuple(StoredFile.from_json(stored) for stored in entry["files"])
    return ShardReport(entry["name"], entry["rows"], entry["refused"], files, counts=entry["counts"])
