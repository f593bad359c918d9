"""The plan of a run: catalog minus what is done, counted before anything is computed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ezigen.config import CatalogInputs, ErrorCode, ItemError, SamplerConfig
from tasks.catalog.checking import RowChecker, Values, to_refusal
from tasks.catalog.estimates import Estimate, estimate
from tasks.catalog.rows import Item, RowRefusal, RunFingerprint
from tasks.catalog.sketches import with_sketch
from tasks.catalog.survey import NO_ROW, Refused, Survey, check_unchanged, survey_catalog
from tasks.datasets.catalogs import Catalog
from tasks.storage.keys import words_to_hex
from tasks.storage.ledger import CODES, ResolvedKeys, ResultsLedger
from tasks.storage.locations import Locations
from tasks.storage.output import RunOutput

TO_DO, DONE, FAILED_BEFORE, REFUSED, POSTPONED = range(5)
"""States of a row; every row of a catalog has exactly one."""

_KEYS_PER_LOOKUP = 1_000_000
_ROWS_PER_READ = 512


@dataclass(frozen=True)
class PlanCounts:
    """How many rows are in which state; the five states add up to `rows`."""

    rows: int
    to_do: int
    done: int
    failed_before: int
    refused: int
    postponed: int
    """Missing, but beyond `limit`."""
    refused_by_code: Mapping[ErrorCode, int]
    failed_before_by_code: Mapping[ErrorCode, int]
    edits_to_do: int = 0
    """Of those to do, rows that edit a source picture."""


@dataclass(frozen=True)
class CatalogPlan:
    """What a run would do. It holds one byte per row; the rows themselves are read again when they are needed."""

    catalog: Catalog
    fingerprint: RunFingerprint
    counts: PlanCounts
    estimate: Estimate
    num_prompts: int
    """Distinct prompts in the catalog."""
    num_subjects: int
    """Distinct subject locations in the catalog."""
    signature: str
    states: npt.NDArray[np.uint8] = field(repr=False)
    attempts: "EarlierAttempts" = field(repr=False)
    refused: Refused = field(repr=False)

    def items(self) -> Iterator[Item]:
        """The items to do, in the order of the catalog, read from it as they are asked for.

        Raises ConfigurationError if the catalog is no longer the one that was planned.
        """
        checker = self._checker()
        for index, values in self._rows(np.flatnonzero(self.states == TO_DO)):
            row = checker.parse(index, values)
            yield Item(row, checker.keys.of_row(row), self.attempts.of_row(index))

    def keys(self) -> Iterator[tuple[str, str]]:
        """item_id and item_key of every row that is not refused, done or not, in the order of the catalog."""
        checker = self._checker()
        refused = np.zeros(len(self.states), dtype=bool)
        refused[self.refused.rows] = True
        for index, values in self._rows(np.flatnonzero(~refused)):
            row = checker.parse(index, values)
            yield row.item_id, checker.keys.of_row(row)

    def refusals(self) -> Iterator[RowRefusal]:
        """The rows that are refused and not yet known as failed, in the order of the catalog."""
        checker = self._checker()
        for index, values in self._rows(np.flatnonzero(self.states == REFUSED)):
            at = int(np.searchsorted(self.refused.rows, index))
            (key,) = words_to_hex(self.refused.words[at : at + 1])
            yield to_refusal(index, values, key, self._error_of(at, values, checker), self.attempts.of_row(index))

    def describe(self) -> list[tuple[str, str]]:
        """The plan as a table of two columns, for a terminal or a page."""
        counts, cost = self.counts, self.estimate
        rows = [("rows", f"{counts.rows:,}"), ("done", f"{counts.done:,}"), ("to do", f"{counts.to_do:,}")]
        if counts.edits_to_do:
            rows.append(("of them edits", f"{counts.edits_to_do:,}"))
        if counts.postponed:
            rows.append(("left for later runs (limit)", f"{counts.postponed:,}"))
        if counts.failed_before:
            rows.append(("failed before (retry_failed runs them)", f"{counts.failed_before:,}"))
        rows += [(f"refused: {code.value}", f"{number:,}") for code, number in counts.refused_by_code.items()]
        rows += [("distinct prompts", f"{self.num_prompts:,}"), ("distinct subjects", f"{self.num_subjects:,}")]
        rows += [("UNet calls", f"about {cost.num_unet_calls:,}"), ("images", f"about {_size(cost.image_bytes)}")]
        rows.append(
            ("worker hours", "not measured yet" if cost.worker_hours is None else f"about {cost.worker_hours:,.2f}")
        )
        return rows

    def _checker(self) -> RowChecker:
        return RowChecker(self.fingerprint, self.catalog.locations)

    def _rows(self, wanted: npt.NDArray[np.int64]) -> Iterator[tuple[int, Values]]:
        """Positions and texts of these rows, given in order; nothing is read behind the last of them."""
        if not len(wanted):
            return
        check_unchanged(self.catalog, self.signature)
        first, last = 0, int(wanted[-1])
        for batch in self.catalog.batches():
            start, stop = np.searchsorted(wanted, [first, first + len(batch)])
            if start < stop:
                check_unchanged(self.catalog, self.signature)
            for at in range(start, stop, _ROWS_PER_READ):
                rows = wanted[at : min(at + _ROWS_PER_READ, stop)]
                yield from zip(rows.tolist(), batch.take(pa.array(rows - first)).to_pylist(), strict=True)
            first += len(batch)
            if first > last:
                return

    def _error_of(self, at: int, values: Values, checker: RowChecker) -> ItemError:
        """Why the refused row number `at` was refused, in words that the first pass did not keep."""
        row, first_row = int(self.refused.rows[at]), int(self.refused.first_rows[at])
        if first_row != NO_ROW:
            message = f"row {row + 1} has the item_id of row {first_row + 1}; every row needs its own."
            return ItemError(ErrorCode.DUPLICATE_ID, message)
        try:
            checker.check(row, values)
        except ItemError as error:
            return error
        return ItemError(
            CODES[self.refused.codes[at]], f"row {row + 1} was refused when planned and is good now; run again."
        )


@dataclass(frozen=True)
class EarlierAttempts:
    """How often the rows that are tried again were tried before: a few rows among millions, in order."""

    rows: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int32]

    def of_row(self, row: int) -> int:
        """0 for a row that was not tried before."""
        at = int(np.searchsorted(self.rows, row))
        return int(self.numbers[at]) if at < len(self.rows) and self.rows[at] == row else 0


def plan_catalog(  # noqa: PLR0913 - all but four have defaults
    inputs: CatalogInputs,
    sampler: SamplerConfig,
    model_fingerprint: str,
    adapter_fingerprint: str,
    progress: Callable[[int], None] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    seconds_per_call: float | None = None,
    image_size_px: int = 512,
    sketch_fingerprint: str = "",
) -> CatalogPlan:
    """Reads the catalog and the output's results and decides what is to do; writes nothing.

    `progress` gets the number of rows read. `storage_options` are those of `Locations`. `sketch_fingerprint` tells
    another model that draws the scenes from others, "" says that there is none. Raises ConfigurationError if the
    catalog or a stored result cannot be read.
    """
    locations = Locations.for_catalog(inputs, storage_options)
    catalog = Catalog.at(inputs.catalog_uri, locations)
    sketched = with_sketch(sampler.digest(), sketch_fingerprint)
    fingerprint = RunFingerprint(sketched, model_fingerprint, adapter_fingerprint, sampler.edit.digest())
    survey = survey_catalog(catalog, RowChecker(fingerprint, locations), progress)
    known = ResultsLedger(RunOutput(inputs.output_uri, locations)).resolved
    states, earlier = _look_up(survey, known)
    again = _decide(states, survey.refused.rows, inputs)
    counts = _count(states, survey, known.codes[earlier[states == FAILED_BEFORE]])
    return CatalogPlan(
        catalog=catalog,
        fingerprint=fingerprint,
        counts=counts,
        estimate=estimate(
            counts.to_do,
            sampler,
            known.measured,
            num_edits=counts.to_do if sketch_fingerprint else counts.edits_to_do,
            seconds_per_call=seconds_per_call,
            image_size_px=image_size_px,
        ),
        num_prompts=survey.num_prompts,
        num_subjects=survey.num_subjects,
        signature=survey.signature,
        states=states,
        attempts=EarlierAttempts(again, known.attempts[earlier[again]]),
        refused=survey.refused,
    )


def _look_up(survey: Survey, known: ResolvedKeys) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """For every row TO_DO, DONE or FAILED_BEFORE, and its position among the known keys (-1 for none)."""
    words = survey.words
    words[survey.refused.rows] = survey.refused.words
    states, positions = np.full(len(words), TO_DO, np.uint8), np.full(len(words), -1, np.int32)
    for start in range(0, len(words), _KEYS_PER_LOOKUP):
        part = slice(start, start + _KEYS_PER_LOOKUP)
        positions[part] = known.table.find(words[part])
    found = positions >= 0
    states[found] = np.where(known.done[positions[found]], DONE, FAILED_BEFORE)
    return states, positions


def _decide(
    states: npt.NDArray[np.uint8], refused_rows: npt.NDArray[np.int64], inputs: CatalogInputs
) -> npt.NDArray[np.int64]:
    """Settles the states in place; returns the rows that failed before and are tried again."""
    failed = states == FAILED_BEFORE
    if inputs.retry_failed:
        states[failed] = TO_DO
    states[refused_rows[states[refused_rows] == TO_DO]] = REFUSED
    if inputs.limit:
        states[np.flatnonzero(states == TO_DO)[inputs.limit :]] = POSTPONED
    return np.flatnonzero(failed & (states != FAILED_BEFORE))


def _count(states: npt.NDArray[np.uint8], survey: Survey, failed_codes: npt.NDArray[np.uint8]) -> PlanCounts:
    numbers = np.bincount(states, minlength=5).tolist()
    refused_codes = survey.refused.codes[states[survey.refused.rows] == REFUSED]
    return PlanCounts(
        rows=len(states),
        to_do=numbers[TO_DO],
        done=numbers[DONE],
        failed_before=numbers[FAILED_BEFORE],
        refused=numbers[REFUSED],
        postponed=numbers[POSTPONED],
        refused_by_code=_by_code(refused_codes),
        failed_before_by_code=_by_code(failed_codes),
        edits_to_do=int((states[survey.edit_rows] == TO_DO).sum()),
    )


def _by_code(codes: npt.NDArray[np.uint8]) -> dict[ErrorCode, int]:
    numbers = np.bincount(codes, minlength=len(CODES)).tolist()
    return {code: number for code, number in zip(CODES, numbers, strict=False) if number}


def _size(num_bytes: int) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 2**10:,.0f} KiB"
