"""Which rows of a catalog are good: the rule for one row, and the same rule for a whole batch at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ezigen.config import ErrorCode, ItemError
from tasks.catalog.rows import (
    COLUMNS,
    DEFAULT_CLASS,
    MAX_CLASS_CHARS,
    MAX_ITEM_ID_CHARS,
    MAX_PROMPT_CHARS,
    MAX_URI_CHARS,
    CatalogRow,
    ItemKeys,
    RowRefusal,
    RunFingerprint,
    digest_hex,
    parse_row,
    to_canonical,
)
from tasks.datasets.catalogs import BROKEN
from tasks.storage.keys import Words, words_from_digests
from tasks.storage.locations import Locations, locate

Values = Mapping[str, str | None]

MAX_REPORTED_CHARS = 500

# Control characters and line separators anywhere, white space at the ends.
_SUSPICIOUS_TEXT = r"[\x00-\x1f\x7f-\x9f\x{2028}\x{2029}]|^\p{Z}|\p{Z}$"
# A location that needs a closer look: it leaves its folder, names a scheme, starts at the root or at a home.
_SUSPICIOUS_PATH = r"(^|/)\.\.?(/|$)|^[/~\[]|:/"
_PLAIN_SEED = r"^(0|[1-9][0-9]{0,17})$"


class RowChecker:
    """The rule for one row: its texts, and whether its locations may be opened."""

    def __init__(self, fingerprint: RunFingerprint, locations: Locations) -> None:
        self.keys = ItemKeys(fingerprint)
        self.locations = locations

    def check(self, index: int, values: Values) -> CatalogRow:
        """The checked row. Raises ItemError with ROW_INVALID or LOCATION_*."""
        row = self.parse(index, values)
        for uri in (*row.subject_uris, row.subject_mask_uri, row.source_uri, row.mask_uri):
            if uri is not None:
                self.locations.check(uri)
        return row

    def parse(self, index: int, values: Values) -> CatalogRow:
        """The row of a batch; its locations are checked when they are read. Raises ItemError."""
        if reason := values.get(BROKEN):
            raise ItemError(ErrorCode.ROW_INVALID, f"row {index + 1} cannot be read: {reason}.")
        return parse_row(index, values)

    def refusal_key(self, code: ErrorCode, values: Values) -> str:
        """A key that depends on what the wrong row says; identical rows share it until they are told apart."""
        box, mix = values.get("mask_box"), values.get("subject_mix")
        names = [*(name for name in COLUMNS if name not in ("mask_box", "subject_mix")), BROKEN]
        # These columns are younger than the others: without a value they leave the keys that there are as they are.
        younger = [*([box] if box else []), *(["subject_mix", mix] if mix else [])]
        return self.keys.of_refusal(code, [*(values.get(name) for name in names), *younger])


def occurrence_key(key: str, occurrence: int) -> str:
    """The key of the n-th further row that would have the same key; the first one (0) keeps it."""
    return digest_hex(to_canonical(["ezigen-occurrence/1", key, occurrence])) if occurrence else key


def to_refusal(index: int, values: Values, item_key: str, error: ItemError, attempts: int) -> RowRefusal:
    """A refused row as it is reported: texts made printable and cut."""
    item_id, uri, subject_class, prompt = (
        _reported(values.get(name)) for name in ("item_id", "subject_uri", "subject_class", "prompt")
    )
    return RowRefusal(
        index=index,
        item_id=item_id,
        item_key=item_key,
        code=error.code,
        message=error.message,
        attempts=attempts,
        subject_uri=uri,
        subject_class=subject_class,
        prompt=prompt,
    )


def _reported(text: str | None) -> str:
    shown = (text or "").strip()[:MAX_REPORTED_CHARS]
    return "".join(c if c.isprintable() or c == " " else "\N{REPLACEMENT CHARACTER}" for c in shown)


@dataclass(frozen=True)
class CheckedBatch:
    """What a batch of rows comes to. `row_words` and `id_words` are zero where the row is refused."""

    row_words: Words
    id_words: Words
    refused: Sequence[tuple[int, ErrorCode, str]]
    """Positions in the batch, with code and key."""
    prompts: Sequence[str]
    subjects: Sequence[str]
    """Distinct texts of the good rows."""
    edits: Sequence[int] = ()
    """Positions of the good rows that edit a source picture."""


class BatchChecker:
    """The rule of RowChecker for a whole batch at once.

    Columns are tested as a whole for being plainly good, which nearly every row is; only the others go through
    RowChecker. A row that passes here gets the very key that RowChecker would give it.
    """

    def __init__(self, checker: RowChecker) -> None:
        self._checker = checker
        self._roots = _plain_roots(checker.locations)
        self._relative_allowed = _allows_relative(checker.locations)

    def check(self, batch: pa.RecordBatch, first_index: int) -> CheckedBatch:
        """The keys of the good rows and the refusals of the others."""
        plain = self._plain_rows(batch)
        row_words, id_words = np.zeros((len(batch), 2), np.uint64), np.zeros((len(batch), 2), np.uint64)
        good = batch if plain.all() else batch.filter(pa.array(plain))
        row_words[plain], id_words[plain] = _digests(self._canonical(good)), _digests(good.column("item_id"))
        prompts, subjects = set(good.column("prompt").unique().to_pylist()), _distinct(good, "subject_uri")
        refused: list[tuple[int, ErrorCode, str]] = []
        edits: list[int] = []
        odd = np.flatnonzero(~plain)
        for position, values in zip(odd.tolist(), batch.take(pa.array(odd)).to_pylist(), strict=True):
            try:
                row = self._checker.check(first_index + position, values)
            except ItemError as error:
                refused.append((position, error.code, self._checker.refusal_key(error.code, values)))
                continue
            row_words[position] = words_from_digests([bytes.fromhex(self._checker.keys.of_row(row))])[0]
            id_words[position] = _digests(pa.array([row.item_id]))[0]
            if row.edits:
                edits.append(position)
            prompts.add(row.prompt)
            subjects.update(row.subject_uris)
        return CheckedBatch(row_words, id_words, refused, list(prompts), list(subjects), edits)

    def _plain_rows(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        column = batch.column
        checks = [
            pc.is_null(column(BROKEN)),
            pc.is_null(column("source_uri")),
            pc.is_null(column("mask_uri")),
            pc.is_null(column("mask_box")),
            pc.is_null(column("subject_mix")),
            _is_plain_text(column("item_id"), MAX_ITEM_ID_CHARS),
            _is_plain_text(column("prompt"), MAX_PROMPT_CHARS),
            _is_absent_or(_is_plain_class, column("subject_class")),
            _is_absent_or(_is_plain_text, column("negative_prompt"), MAX_PROMPT_CHARS),
            self._is_plain_location(column("subject_uri")),
            _is_absent_or(self._is_plain_location, column("subject_mask_uri")),
            _is_absent_or(pc.match_substring_regex, column("seed"), _PLAIN_SEED),
        ]
        plain = pc.fill_null(reduce(pc.and_, checks), fill_value=False)
        mask: npt.NDArray[np.bool_] = plain.to_numpy(zero_copy_only=False)
        return mask

    def _is_plain_location(self, column: pa.Array) -> pa.Array:
        inside = pc.and_(pa.scalar(self._relative_allowed), pc.invert(_matches(column, _SUSPICIOUS_PATH)))
        for root in self._roots:
            rest = pc.and_(pc.starts_with(column, root), pc.invert(_matches(column, r"/\.\.?(/|$)")))
            inside = pc.or_(inside, rest)
        return pc.and_(inside, _is_plain_text(column, MAX_URI_CHARS))

    def _canonical(self, batch: pa.RecordBatch) -> pa.Array:
        """The text under the key of each row: what `ItemKeys.of_row` digests."""
        text = {name: _escaped(batch.column(name)) for name in COLUMNS}
        quoted_id, quoted_prompt = (_joined('"', text[name], '"') for name in ("item_id", "prompt"))
        seed = batch.column("seed")
        if seed.null_count:
            seed = pc.coalesce(seed, _derived_seeds(quoted_id, quoted_prompt))
        parts = [
            *(self._checker.keys.prefix, quoted_id, ',["', text["subject_uri"], '"],"'),
            *(pc.fill_null(text["subject_class"], DEFAULT_CLASS), '",', quoted_prompt, ',"'),
            *(pc.fill_null(text["negative_prompt"], ""), '",', seed, ","),
            *(_or_json_null(text["subject_mask_uri"]), ",null,null]"),
        ]
        return _joined(*parts)


def _plain_roots(locations: Locations) -> list[str]:
    """Beginnings of locations that lie inside a root however their rest reads, as long as it has no dots."""
    return [f"{locate(root).uri.rstrip('/')}/" for root in locations.allowed_roots]


def _allows_relative(locations: Locations) -> bool:
    try:
        locations.check("a")
    except ItemError:
        return False
    return True


def _is_plain_text(column: pa.Array, max_chars: int) -> pa.Array:
    length = pc.utf8_length(column)
    fits = pc.and_(pc.greater(length, 0), pc.less_equal(length, max_chars))
    return pc.and_(fits, pc.invert(_matches(column, _SUSPICIOUS_TEXT)))


def _is_plain_class(column: pa.Array) -> pa.Array:
    return pc.and_(_is_plain_text(column, MAX_CLASS_CHARS), pc.invert(pc.starts_with(column, "[")))


def _is_absent_or(test: Callable[..., pa.Array], column: pa.Array, *arguments: Any) -> pa.Array:
    absent = pc.is_null(column)
    return absent if column.null_count == len(column) else pc.or_kleene(absent, test(column, *arguments))


def _matches(column: pa.Array, pattern: str) -> pa.Array:
    return pc.match_substring_regex(column, pattern)


def _escaped(column: pa.Array) -> pa.Array:
    """The text as it stands between JSON's quotes; plain rows hold no control characters."""
    if not pc.any(_matches(column, r'["\\]')).as_py():
        return column
    return pc.replace_substring(pc.replace_substring(column, "\\", "\\\\"), '"', '\\"')


def _joined(*parts: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _or_json_null(column: pa.Array) -> pa.Array:
    return pc.fill_null(_joined('"', column, '"'), "null")


def _derived_seeds(quoted_ids: pa.Array, quoted_prompts: pa.Array) -> pa.Array:
    """What `derive_seed` gives, for a batch."""
    texts = _joined('["ezigen-seed/1",', quoted_ids, ",", quoted_prompts, "]").cast(pa.binary()).to_pylist()
    digests = b"".join([blake2b(text, digest_size=8).digest() for text in texts])
    return pa.array(np.frombuffer(digests, ">u8").astype(np.uint64) >> np.uint64(1)).cast(pa.string())


def _digests(column: pa.Array) -> Words:
    return words_from_digests([blake2b(data, digest_size=16).digest() for data in column.cast(pa.binary()).to_pylist()])


def _distinct(batch: pa.RecordBatch, name: str) -> set[str]:
    return set(batch.column(name).unique().to_pylist())
