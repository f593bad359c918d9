"""Shards of units to shards of pairs: what runs in the workers."""

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import xxhash

from ezigen.config import PairConfig
from tasks.datasets.drawing import Pair, PictureLimits, RefusedPair, build_unit
from tasks.datasets.units import Unit
from tasks.pairs.encoding import encode_pair
from tasks.pairs.layout import IDENTITY, KIND, pairs_path, plan_path, read_parquet, refusals_path, to_parquet
from tasks.pairs.manifest import record_metadata
from tasks.pairs.schema import PAIRS_SCHEMA, REFUSALS_SCHEMA
from tasks.pairs.stored_plan import LIMITS
from tasks.sharding import ShardReport, store_file
from tasks.storage import Locations, OutputFolder, locate
from tasks.storage.stored_file import StoredFile

ROW_GROUP_BYTES = 64 * 2**20
_REMOTE_READERS = 8
_PICTURE_COLUMNS = ("subject", "subject_mask", "target")

Row = dict[str, Any]


@dataclass(frozen=True)
class PairWork:
    """Builds the pairs of a planned shard. `locations` are those of the data sets, by source."""

    output: OutputFolder
    identity: str
    config: PairConfig
    limits: PictureLimits
    locations: Mapping[str, Locations] = field(repr=False)

    def open(self) -> None:
        """There is nothing to load; importing what reads masks takes a moment."""
        import pycocotools.mask  # noqa: F401

    def make(self, shard: str) -> ShardReport:
        """Refusals are stored before the pairs, whose existence means that the shard is done.

        Candidates behind those that give as many pairs of a source as the plan allows are not tried.
        """
        plan = read_parquet(self.output, plan_path(shard), self.identity)
        left: dict[str, int] = json.loads(plan.schema.metadata[LIMITS.encode()])
        pairs: list[Row] = []
        refused: list[Row] = []
        # Lazily, so that it is known of every unit whether it is still needed; one that was built ahead is not kept.
        for rows in self._build_all(row for row in plan.to_pylist() if left[row["source"]]):
            for row in rows:
                if left[row["source"]]:
                    (refused if "reason" in row else pairs).append(row)
                    left[row["source"]] -= "reason" not in row
        for rows in (pairs, refused):
            rows.sort(key=lambda row: row["pair_id"])
        return self._store(shard, pairs, refused)

    def _store(self, shard: str, pairs: list[Row], refused: list[Row]) -> ShardReport:
        counts = Counter(row["source"] for row in pairs)
        reasons = Counter(row["reason"] for row in refused)
        num_pairs, num_refused = len(pairs), len(refused)
        described = {KIND: "pairs", IDENTITY: self.identity}
        data = to_parquet(_row_groups(pairs), PAIRS_SCHEMA, described)
        # What is stored first vouches for what is stored last; see tasks.pairs.manifest.
        expected = StoredFile(pairs_path(shard), len(data), num_pairs, xxhash.xxh3_128_hexdigest(data))
        metadata = {**described, KIND: "refusals", **record_metadata(expected, counts, reasons)}
        table = pa.Table.from_pylist(refused, REFUSALS_SCHEMA)
        first = store_file(
            self.output, refusals_path(shard), to_parquet([table], REFUSALS_SCHEMA, metadata), num_refused
        )
        last = store_file(self.output, pairs_path(shard), data, num_pairs)
        return ShardReport(shard, num_pairs, dict(reasons), (first, last), counts=dict(counts))

    # ---- building

    def _build_all(self, plan: Iterable[Row]) -> Iterator[list[Row]]:
        """The rows of each unit in turn. Units whose pictures lie far away are built several at a time, because most
        of their time is waiting.
        """
        if not self._is_remote():
            yield from map(self._build, plan)
            return
        waiting = iter(plan)
        with ThreadPoolExecutor(_REMOTE_READERS, thread_name_prefix="pairs") as pool:
            ahead: deque[Future[list[Row]]] = deque(
                pool.submit(self._build, row) for row in islice(waiting, _REMOTE_READERS)
            )
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(self._build, row) for row in islice(waiting, 1))

    def _is_remote(self) -> bool:
        roots = (root for locations in self.locations.values() for root in locations.allowed_roots)
        return any(locate(root).scheme == "s3" for root in roots)

    def _build(self, row: Row) -> list[Row]:
        unit = Unit.from_row(row)
        ranks = range(row["rank_start"], row["rank_stop"])
        read = self.locations[unit.source].read_bytes
        built = build_unit(unit, ranks, self.config, read, self.limits)
        return [self._to_row(one) for one in built]

    def _to_row(self, built: Pair | RefusedPair) -> Row:
        if isinstance(built, Pair):
            return encode_pair(built, self.config)
        return {
            "pair_id": built.pair_id,
            "source": built.source,
            "group_id": built.group_id,
            "reason": str(built.reason),
            "message": built.message,
            "subject_class": built.subject_class,
        }


def _row_groups(rows: list[Row], limit: int = ROW_GROUP_BYTES) -> Iterator[pa.Table]:
    """Tables of at most `limit` bytes of pictures (or one row), in order; at least one. Their rows are forgotten."""
    waiting = deque(rows)
    rows.clear()
    while True:
        group: list[Row] = []
        size = 0
        while waiting and (not group or size + _size(waiting[0]) <= limit):
            size += _size(waiting[0])
            group.append(waiting.popleft())
        yield pa.Table.from_pylist(group, PAIRS_SCHEMA)
        if not waiting:
            return


def _size(row: Row) -> int:
    return sum(len(row[column] or b"") for column in _PICTURE_COLUMNS)
