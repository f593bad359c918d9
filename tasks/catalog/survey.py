"""The first pass over a catalog: every row's key, what is refused, and nothing else kept of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ezigen.config import ConfigurationError, ErrorCode
from tasks.catalog.checking import BatchChecker, CheckedBatch, RowChecker, occurrence_key
from tasks.datasets.catalogs import Catalog, warn_unknown
from tasks.storage.keys import (
    DistinctCounter,
    Words,
    group_starts,
    positions_in_group,
    sort_order,
    words_from_digests,
    words_to_hex,
)
from tasks.storage.ledger import CODES

NO_ROW = -1


@dataclass(frozen=True)
class Refused:
    """Refused rows in the order of the catalog, about 40 bytes each."""

    rows: npt.NDArray[np.int64]
    words: Words
    codes: npt.NDArray[np.uint8]
    """Positions in `tasks.storage.ledger.CODES`."""
    first_rows: npt.NDArray[np.int64]
    """For a duplicate the row that has its item_id first; NO_ROW for others."""


@dataclass(frozen=True)
class Survey:
    """A catalog of any size as arrays. `words` (num_rows, 2) holds the keys; those of refused rows mean nothing."""

    signature: str
    words: Words
    refused: Refused
    num_prompts: int
    num_subjects: int
    edit_rows: npt.NDArray[np.int64]
    """Good rows that edit a source picture, in order; some of them may be refused as duplicates."""


def survey_catalog(catalog: Catalog, checker: RowChecker, progress: Callable[[int], None] | None = None) -> Survey:
    """Reads the catalog once. `progress` gets the number of rows read so far.

    Raises ConfigurationError if the catalog as a whole cannot be used, or changes while it is read.
    """
    signature = catalog.signature()
    gathered = _Gathered()
    for batch in _checked_batches(catalog, checker):
        gathered.add(batch)
        if progress is not None:
            progress(gathered.num_rows)
    check_unchanged(catalog, signature)
    return gathered.finish(signature)


def check_unchanged(catalog: Catalog, signature: str) -> None:
    """Raises ConfigurationError if the catalog is not the one that was surveyed."""
    if catalog.signature() != signature:
        raise ConfigurationError(
            f"catalog_uri {catalog.location.uri}: the catalog changed while it was being read; run again."
        )


def _checked_batches(catalog: Catalog, checker: RowChecker) -> Iterator[CheckedBatch]:
    first_index, batch_checker = 0, BatchChecker(checker)
    for batch in catalog.batches(on_unknown=warn_unknown):
        yield batch_checker.check(batch, first_index)
        first_index += len(batch)


class _Gathered:
    """What the first pass keeps: 32 bytes per row."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._row_words: list[Words] = []
        self._id_words: list[Words] = []
        self._refused: list[Refused] = []
        self._edit_rows: list[npt.NDArray[np.int64]] = []
        self._prompts, self._subjects = DistinctCounter(), DistinctCounter()

    def add(self, batch: CheckedBatch) -> None:
        self._row_words.append(batch.row_words)
        self._id_words.append(batch.id_words)
        if batch.refused:
            self._refused.append(_to_refused(batch, self.num_rows))
        if batch.edits:
            self._edit_rows.append(np.array(batch.edits, np.int64) + self.num_rows)
        self._prompts.add(batch.prompts)
        self._subjects.add(batch.subjects)
        self.num_rows += len(batch.row_words)

    def finish(self, signature: str) -> Survey:
        invalid = _tell_apart(_concatenated(self._refused))
        self._refused.clear()
        id_words = np.concatenate(self._id_words)
        self._id_words.clear()
        rows, first_rows, occurrences = _find_duplicates(id_words, invalid.rows)
        del id_words
        words = np.concatenate(self._row_words)
        self._row_words.clear()
        duplicates = Refused(
            rows=rows,
            words=_occurrence_words(words[rows], occurrences),
            codes=np.full(len(rows), CODES.index(ErrorCode.DUPLICATE_ID), np.uint8),
            first_rows=first_rows,
        )
        refused = _in_row_order(_concatenated([invalid, duplicates]))
        edit_rows = np.concatenate([np.empty(0, np.int64), *self._edit_rows])
        return Survey(signature, words, refused, self._prompts.count(), self._subjects.count(), edit_rows)


def _to_refused(batch: CheckedBatch, first_row: int) -> Refused:
    return Refused(
        rows=np.array([first_row + position for position, _, _ in batch.refused], np.int64),
        words=words_from_digests(bytes.fromhex(key) for _, _, key in batch.refused),
        codes=np.array([CODES.index(code) for _, code, _ in batch.refused], np.uint8),
        first_rows=np.full(len(batch.refused), NO_ROW, np.int64),
    )


def _tell_apart(refused: Refused) -> Refused:
    """Gives identical wrong rows different keys, so that each has its own result row."""
    order = sort_order(refused.words)
    occurrences = np.empty(len(order), np.int64)
    occurrences[order] = positions_in_group(group_starts(refused.words[order]))
    return replace(refused, words=_occurrence_words(refused.words, occurrences))


def _find_duplicates(
    id_words: Words, invalid_rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows whose item_id an earlier good row has, that earlier row, and how many had it before (1, 2, ...)."""
    rows = None
    if len(invalid_rows):
        rows = np.setdiff1d(np.arange(len(id_words)), invalid_rows, assume_unique=True)
        id_words = id_words[rows]
    order = sort_order(id_words)
    starts = group_starts(id_words[order])
    if starts.all():
        nothing = np.empty(0, np.int64)
        return nothing, nothing, nothing
    occurrences = positions_in_group(starts)
    later = np.flatnonzero(~starts)
    duplicates, firsts = order[later], order[later - occurrences[later]]
    if rows is not None:
        duplicates, firsts = rows[duplicates], rows[firsts]
    by_row = np.argsort(duplicates)
    return duplicates[by_row], firsts[by_row], occurrences[later][by_row]


def _occurrence_words(words: Words, occurrences: npt.NDArray[np.int64]) -> Words:
    changed = words.copy()
    repeated = np.flatnonzero(occurrences)
    keys = zip(words_to_hex(words[repeated]), occurrences[repeated].tolist(), strict=True)
    changed[repeated] = words_from_digests(bytes.fromhex(occurrence_key(key, n)) for key, n in keys)
    return changed


def _concatenated(parts: Sequence[Refused]) -> Refused:
    nothing = np.empty(0, np.int64)
    return Refused(
        rows=np.concatenate([nothing, *(part.rows for part in parts)]),
        words=np.concatenate([np.empty((0, 2), np.uint64), *(part.words for part in parts)]),
        codes=np.concatenate([np.empty(0, np.uint8), *(part.codes for part in parts)]),
        first_rows=np.concatenate([nothing, *(part.first_rows for part in parts)]),
    )


def _in_row_order(refused: Refused) -> Refused:
    order = np.argsort(refused.rows)
    return Refused(refused.rows[order], refused.words[order], refused.codes[order], refused.first_rows[order])
