"""The pairs of a feature store as arrays: which are trained on, which are held out, which share a target."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ezigen.config import ConfigurationError
from ezigen.training.batch import SOURCES
from ezigen.training.order import hash_fractions
from tasks.features import FeatureStore
from tasks.storage.keys import Words, words_from_hex

T = TypeVar("T")

Rows = npt.NDArray[np.int64]
"""Numbers of pairs, in stored order."""

_PARALLEL_READS = 8


@dataclass(frozen=True, eq=False)
class PairTable:
    """P stored pairs in about 60 bytes each: the ids of what they show, source, and a draw of their picture or video.

    The draw, in [0, 1), is a hash of the seed and of the pair_id without its last part: all pairs that were cut from
    one picture or video share it.
    """

    subjects: Words
    targets: Words
    texts: Words
    sources: npt.NDArray[np.int8]
    """Index into SOURCES."""
    draws: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Pairs."""
        return len(self.sources)


@dataclass(frozen=True, eq=False)
class Samples:
    """n samples: the i-th one has the pairs rows[starts[i]:starts[i + 1]], with one target and one text."""

    rows: Rows
    starts: Rows

    def __len__(self) -> int:
        """Samples."""
        return len(self.starts) - 1

    def pairs(self, sample: int) -> Rows:
        """The pairs of a sample, each with another subject."""
        return self.rows[self.starts[sample] : self.starts[sample + 1]]

    @property
    def most_pairs(self) -> int:
        """Of the sample with the most; 0 if there is none."""
        return int(np.diff(self.starts).max(initial=0))

    @classmethod
    def single(cls, rows: Rows) -> "Samples":
        """Every pair is a sample."""
        return cls(rows, np.arange(len(rows) + 1))

    @classmethod
    def grouped(cls, table: PairTable, rows: Rows) -> "Samples":
        """Pairs with the same target and the same text are one sample, a subject in it counts once.

        Samples are in the order of their first pairs, the pairs in a sample in stored order.
        """
        order, first = _equal_rows(rows, table.targets[rows], table.texts[rows])
        sample = np.empty(len(rows), np.int64)
        # The place of a sample's first pair is its number.
        sample[order] = order[first]
        order, distinct = _equal_rows(rows, sample[:, None].astype(np.uint64), table.subjects[rows])
        kept = np.unique(order[distinct])
        kept = kept[np.lexsort((kept, sample[kept]))]
        starts = np.flatnonzero(np.diff(sample[kept], prepend=-1))
        return cls(rows[kept], np.append(starts, len(kept)))


def read_pairs(store: FeatureStore, seed: int) -> PairTable:
    """The small columns of samples/, several shards at a time.

    Raises ConfigurationError for a shard that is damaged, and for a pair of an unknown source.
    """
    parts = map_parallel(partial(_read_shard, store, seed), [shard.name for shard in store.shards])
    if not parts:
        raise ConfigurationError(f"the feature store {store.output.root_uri} has no samples; build pairs for it first.")
    return PairTable(
        subjects=np.concatenate([part.subjects for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        texts=np.concatenate([part.texts for part in parts]),
        sources=np.concatenate([part.sources for part in parts]),
        draws=np.concatenate([part.draws for part in parts]),
    )


def read_pair_ids(store: FeatureStore, rows: Sequence[int] | Rows) -> list[str]:
    """The pair_id of pairs by their numbers; reads only the shards they are in, so that nobody has to keep them all."""
    ends = np.cumsum([shard.rows for shard in store.shards])
    wanted = np.asarray(rows, np.int64)
    shards = np.searchsorted(ends, wanted, side="right")
    numbers = np.unique(shards).tolist()
    columns = map_parallel(lambda number: _pair_id_column(store, store.shards[number].name), numbers)
    by_shard = dict(zip(numbers, columns, strict=True))
    starts = ends - [shard.rows for shard in store.shards]
    return [
        by_shard[shard][row - starts[shard]].as_py()
        for shard, row in zip(shards.tolist(), wanted.tolist(), strict=True)
    ]


def hold_out(table: PairTable, share: float, wanted: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """Which pairs are held out: those of about a share of the pictures and videos of the wanted sources.

    Whole pictures and videos only. Small sets get what the share would round away: of every source with several of
    them one is trained on, whatever their draws, and if there are any to spare, at least one is held out.
    """
    held = np.zeros(len(table), np.bool_)
    if not share:
        return held
    spare = []
    for source in np.flatnonzero(wanted):
        inside = table.sources == source
        draws = np.unique(table.draws[inside])
        if len(draws) > 1:
            held |= inside & (table.draws < min(share, draws[-1]))
            spare.append((draws[0], source))
    if spare and not held.any():
        draw, source = min(spare)
        held = (table.sources == source) & (table.draws == draw)
    return held


def map_parallel(function: Callable[..., T], items: Sequence[object]) -> list[T]:
    """The values in order; what is asked of a store takes its time to come."""
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="read-samples") as pool:
        return list(pool.map(function, items))


def _read_shard(store: FeatureStore, seed: int, shard: str) -> PairTable:
    rows = _samples(store, shard)
    pair_ids = rows.column("pair_id")
    return PairTable(
        subjects=words_from_hex(rows.column("subject_id")),
        targets=words_from_hex(rows.column("target_id")),
        texts=words_from_hex(rows.column("text_id")),
        sources=_sources(store, rows),
        draws=_draws(seed, pair_ids),
    )


def _samples(store: FeatureStore, shard: str) -> pa.RecordBatch:
    table = pa.Table.from_batches(store.samples([shard])).combine_chunks()
    stored = next(one.rows for one in store.shards if one.name == shard)
    if len(table) != stored:
        raise ConfigurationError(
            f"{store.output.uri(f'samples/{shard}.parquet')} has {len(table):,} rows, but manifest.json says "
            f"{stored:,}; run precompute_features with verify on this store, it makes damaged shards again."
        )
    return table.to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], table.schema)


def _pair_id_column(store: FeatureStore, shard: str) -> pa.Array:
    return _samples(store, shard).column("pair_id")


def _sources(store: FeatureStore, rows: pa.RecordBatch) -> npt.NDArray[np.int8]:
    if "source" not in rows.schema.names:
        raise ConfigurationError(
            f"the samples of {store.output.root_uri} lack the column source; write the store with precompute_features."
        )
    found = pc.index_in(rows.column("source"), pa.array(SOURCES))
    if found.null_count:
        row = rows.slice(pc.index(found.is_null(), True).as_py(), 1).to_pylist()[0]
        raise ConfigurationError(
            f"pair {row['pair_id']} of {store.output.root_uri} has source {row['source']!r}; training knows "
            f"{' and '.join(SOURCES)}."
        )
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int8)


def _draws(seed: int, pair_ids: pa.StringArray) -> npt.NDArray[np.float64]:
    groups = pc.replace_substring_regex(pair_ids, "/[^/]*$", "").dictionary_encode()
    fractions = hash_fractions(seed, groups.dictionary.to_pylist())
    return fractions[groups.indices.to_numpy()] if len(pair_ids) else np.empty(0)


def _equal_rows(rows: Rows, left: Words, right: Words) -> tuple[Rows, Rows]:
    """An order that puts equal keys together, earlier pairs first, and for each place where its run of them began."""
    columns = (*left.T, *right.T)
    order = np.lexsort(columns)
    new = np.ones(len(rows), np.bool_)
    new[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    return order, np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))
