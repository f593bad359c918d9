"""Merging small result shards into large ones, and removing what crashes left behind."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tasks.storage.filesystems import with_retries
from tasks.storage.output import RunOutput
from tasks.storage.resolution import IDENTITY_COLUMNS, identify, resolve
from tasks.storage.run_record import new_run_id
from tasks.storage.shards import Shard
from tasks.storage.writing import is_local, is_temporary

logger = logging.getLogger(__name__)

TARGET_BYTES = 64 * 2**20
MIN_SHARDS = 16
LEFTOVER_AGE_S = 3600.0
_MERGED = "merged"
_PARALLEL_DELETES = 16


@dataclass(frozen=True)
class CompactionSummary:
    """What a compaction did: shards before and after, and rows that another row of their item had outdone."""

    num_merged: int = 0
    num_written: int = 0
    num_rows_dropped: int = 0


def compact_results(
    output: RunOutput,
    check: Callable[[], None],
    *,
    target_bytes: int = TARGET_BYTES,
    min_shards: int = MIN_SHARDS,
) -> CompactionSummary:
    """Merges the small shards of an output into objects of up to `target_bytes`; does nothing for fewer than
    `min_shards` of them. Call it only while holding the lease; `check` is its check.

    The merged object is written before its inputs are deleted. A crash in between leaves both, and their equal rows
    resolve to one. Raises ConfigurationError for a damaged shard, before anything is deleted.
    """
    summary = CompactionSummary()
    for group in _groups(output.list_results(), target_bytes, min_shards):
        merged, num_dropped = _merge(output, group)
        check()
        output.write_shard(f"{new_run_id()}-{_MERGED}", 0, merged)
        check()
        _delete(output, group)
        summary = CompactionSummary(
            summary.num_merged + len(group), summary.num_written + 1, summary.num_rows_dropped + num_dropped
        )
    return summary


def is_merged(shard: Shard) -> bool:
    """Whether a compaction wrote it: then its rows may be those of any run."""
    return f"-{_MERGED}-" in shard.path.rpartition("/")[2]


def remove_leftovers(output: RunOutput, older_than_s: float = LEFTOVER_AGE_S) -> int:
    """Deletes the temporary files that killed writers left in an output folder; returns how many.

    Object stores have none. Younger files are spared: another process may be writing them.
    """
    if not is_local(output.filesystem):
        return 0
    root, removed, oldest = Path(output.root.path), 0, time.time() - older_than_s
    for folder in (root, root / "results", *sorted((root / "images").glob("??"))):
        for path in _temporary_files(folder):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
    return removed


def _groups(shards: Sequence[Shard], target_bytes: int, min_shards: int) -> Iterator[list[Shard]]:
    """Small shards in order, in groups that fit the target."""
    small = [shard for shard in shards if shard.num_bytes < target_bytes // 4]
    if len(small) < max(min_shards, 2):
        return
    group: list[Shard] = []
    for shard in small:
        if group and sum(one.num_bytes for one in group) + shard.num_bytes > target_bytes:
            yield group
            group = []
        group.append(shard)
    if len(group) > 1:
        yield group


def _merge(output: RunOutput, group: Sequence[Shard]) -> tuple[pa.Table, int]:
    table = pa.Table.from_batches([batch for _, batches in output.read_shards(group) for batch in batches])
    if not len(table):
        return table, 0
    # Only what tells rows apart is copied: a merge holds up to a million rows.
    (identities,) = table.select(IDENTITY_COLUMNS).combine_chunks().to_batches()
    kept = resolve(identify(identities))
    if len(kept) == len(table):
        return table, 0
    kept.sort()
    return table.take(pa.array(kept)), len(table) - len(kept)


def _delete(output: RunOutput, group: Sequence[Shard]) -> None:
    filesystem = output.filesystem

    def delete(shard: Shard) -> None:
        with contextlib.suppress(FileNotFoundError):
            with_retries(lambda: filesystem.rm_file(shard.path), f"deleting {shard.path}")

    # One by one, a thousand of them would hold up the run for half a minute on an object store.
    with ThreadPoolExecutor(_PARALLEL_DELETES, thread_name_prefix="delete-shards") as pool:
        list(pool.map(delete, group))


def _temporary_files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from (path for path in folder.iterdir() if is_temporary(path.name))
