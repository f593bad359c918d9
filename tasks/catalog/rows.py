"""What one row of a catalog says, when it is refused, and the key that names its result."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ezigen.config import ErrorCode, ItemError

REQUIRED_COLUMNS = ("item_id", "subject_uri", "subject_class", "prompt")
OPTIONAL_COLUMNS = ("negative_prompt", "seed", "subject_mask_uri", "source_uri", "mask_uri", "mask_box", "subject_mix")
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS

MAX_ITEM_ID_CHARS = 256
MAX_PROMPT_CHARS = 2000
MAX_CLASS_CHARS = 200
MAX_URI_CHARS = 2048
MAX_SUBJECTS = 4
SEED_LIMIT = 2**63
DEFAULT_CLASS = "object"

# Ids and locations end up in terminals, logs and pages: no control characters, line separators or lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# A prompt may be written over several lines.
_UNPRINTABLE_IN_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Four whole numbers; a longer one lies outside any picture.
_BOX = re.compile(r"\s*-?[0-9]{1,9}\s*(?:,\s*-?[0-9]{1,9}\s*){3}", re.ASCII)
_INTEGER = re.compile(r"[+-]?[0-9]+(?:\.0*)?", re.ASCII)


@dataclass(frozen=True)
class CatalogRow:
    """One checked row. Locations are as written; relative ones are read from the catalog's folder."""

    index: int
    item_id: str
    subject_uris: tuple[str, ...]
    subject_class: str
    prompt: str
    seed: int
    negative_prompt: str = ""
    subject_mask_uri: str | None = None
    source_uri: str | None = None
    mask_uri: str | None = None
    mask_box: tuple[int, int, int, int] | None = None
    subject_mix: tuple[float, ...] = ()
    """By subject picture its share, all together 1; empty: the pictures are not mixed."""

    @property
    def edits(self) -> bool:
        """Whether the row edits a source picture instead of generating one."""
        return self.source_uri is not None

    @property
    def subject_classes(self) -> tuple[str, ...]:
        """By subject picture what it shows."""
        return split_classes(self.subject_class, len(self.subject_uris))

    @property
    def subject_uri(self) -> str:
        """The subject as the catalog writes it: the location, or a JSON array of several."""
        return join_uris(self.subject_uris)


@dataclass(frozen=True)
class Item:
    """A row to be done. `attempts` counts the earlier runs that tried it and failed; a new item has 0."""

    row: CatalogRow
    item_key: str
    attempts: int = 0


@dataclass(frozen=True)
class RowRefusal:
    """A row that is wrong by itself, known without opening a picture. The texts are cut to what a report shows."""

    index: int
    item_id: str
    item_key: str
    code: ErrorCode
    message: str
    attempts: int = 0
    subject_uri: str = ""
    subject_class: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class RunFingerprint:
    """What an image depends on beside its row. A changed part makes every item a new item; `edit` those that edit."""

    sampler: str
    model: str
    adapter: str
    edit: str = ""


class ItemKeys:
    """Names results: equal rows under an equal fingerprint have equal keys, on every machine and from every format.

    The key is BLAKE2b-128 (32 hex digits) of the UTF-8 JSON array, written without spaces and with only the escapes
    that JSON demands,

        ["ezigen-item/1", sampler digest, model fingerprint, adapter fingerprint, item_id, [subject_uri, ...],
         subject_class, prompt, negative_prompt, seed, subject_mask_uri, source_uri, mask_uri]

    and for a row with a source_uri two more, mask_box ([x0, y0, x1, y1] or null) and the digest of sampler.edit; for a
    row with a subject_mix, last, its shares ([0.25, 0.75], a whole 1 being 1.0).
    The row's values are those after `parse_row`: surrounding white space removed, the seed filled in, absent locations
    null. Locations count as written, not as resolved, so a catalog that moves with its pictures keeps its keys.
    """

    def __init__(self, fingerprint: RunFingerprint) -> None:
        parts = [fingerprint.sampler, fingerprint.model, fingerprint.adapter]
        self._edit = fingerprint.edit
        self.prefix = to_canonical(["ezigen-item/1", *parts])[:-1] + ","
        self._refusal_prefix = to_canonical(["ezigen-refusal/1", *parts])[:-1] + ","

    def of_row(self, row: CatalogRow) -> str:
        """The item_key of a checked row."""
        fields: list[object] = [
            row.item_id,
            list(row.subject_uris),
            row.subject_class,
            row.prompt,
            row.negative_prompt,
            row.seed,
            row.subject_mask_uri,
            row.source_uri,
            row.mask_uri,
        ]
        if row.edits:
            fields += [row.mask_box, self._edit]
        if row.subject_mix:
            fields.append(row.subject_mix)
        return digest_hex(self.prefix + to_canonical(fields)[1:])

    def of_refusal(self, code: ErrorCode, raw: Sequence[object]) -> str:
        """A key for a refused row with these values: never the key of a good one."""
        fields = [code.value, *raw]
        return digest_hex(self._refusal_prefix + to_canonical(fields)[1:])


def to_canonical(values: Sequence[object]) -> str:
    """The one JSON text of plain values: no spaces, no escapes beyond those that JSON demands."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest_hex(text: str) -> str:
    """32 hex digits of a text that may hold lone surrogates (a refused row can)."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def derive_seed(item_id: str, prompt: str) -> int:
    """The seed of a row that gives none: 63 bits of a digest, so it survives reordering and other rows' edits."""
    digest = hashlib.blake2b(to_canonical(["ezigen-seed/1", item_id, prompt]).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


def join_uris(uris: Sequence[str]) -> str:
    """One cell for one or several locations, the inverse of `split_uris`."""
    return uris[0] if len(uris) == 1 and not uris[0].lstrip().startswith("[") else to_canonical(list(uris))


def split_uris(cell: str) -> list[str]:
    """Locations in one text cell: a JSON array of strings if it starts with "[", otherwise a single location.

    A separator such as ";" is not used, because file names may contain it. Raises ItemError(ROW_INVALID).
    """
    if not cell.lstrip().startswith("["):
        return [cell]
    try:
        uris = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise _refused("subject_uri", f"starts with '[' but is no JSON array of locations ({error})") from error
    if not all(isinstance(uri, str) for uri in uris):
        raise _refused("subject_uri", "must be a JSON array of strings only")
    return list(uris)


def split_classes(cell: str, num_subjects: int) -> tuple[str, ...]:
    """The class of each subject picture: one for all, or a JSON array with one for each.

    Raises ItemError(ROW_INVALID).
    """
    if not cell.startswith("["):
        return (cell,) * num_subjects
    try:
        classes = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise _refused("subject_class", f"starts with '[' but is no JSON array of words ({error})") from error
    if not all(isinstance(name, str) and name.strip() for name in classes):
        raise _refused("subject_class", "must be a JSON array of words only")
    if len(classes) != num_subjects:
        raise _refused("subject_class", f"lists {len(classes)} classes for {num_subjects} pictures; give one for each")
    return tuple(name.strip() for name in classes)


def parse_mix(cell: str | None, num_subjects: int) -> tuple[float, ...]:
    """The share of each subject picture, of "[0.25, 0.75]"; none if not given. Raises ItemError(ROW_INVALID)."""
    text = (cell or "").strip()
    if not text:
        return ()
    try:
        shares = json.loads(text)
    except (ValueError, RecursionError):
        shares = None
    if not isinstance(shares, list) or not all(_is_number(share) for share in shares):
        raise _refused("subject_mix", f"is {text[:40]!r}; write a JSON array of shares, such as [0.25, 0.75]")
    if len(shares) != num_subjects:
        raise _refused("subject_mix", f"lists {len(shares)} shares for {num_subjects} pictures; give one for each")
    # Compared before they are added: a whole number of JSON may be larger than any float.
    if not all(0 <= share <= 1 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise _refused("subject_mix", f"is {text[:80]}; shares are at least 0 and 1 together")
    return tuple(float(share) for share in shares)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_row(index: int, values: Mapping[str, str | None], subject_uris: Sequence[str] | None = None) -> CatalogRow:
    """A checked row from its texts; None and "" mean "not given". `subject_uris` overrides the cell of that name.

    Raises ItemError(ROW_INVALID) for a wrong value, and for a mask without a source picture.
    """
    item_id = _text(values, "item_id", MAX_ITEM_ID_CHARS, required=True)
    prompt = _text(values, "prompt", MAX_PROMPT_CHARS, required=True, pattern=_UNPRINTABLE_IN_TEXT)
    negative = _text(values, "negative_prompt", MAX_PROMPT_CHARS, pattern=_UNPRINTABLE_IN_TEXT)
    subject_class = _text(values, "subject_class", MAX_CLASS_CHARS) or DEFAULT_CLASS
    subjects = _subjects(split_uris(values.get("subject_uri") or "") if subject_uris is None else subject_uris)
    split_classes(subject_class, len(subjects))
    seed = parse_seed(values.get("seed"))
    source, mask, box = (
        _location(values, "source_uri"),
        _location(values, "mask_uri"),
        parse_box(values.get("mask_box")),
    )
    for column, given in (("mask_uri", mask), ("mask_box", box)):
        if given and not source:
            raise _refused(column, "says what to edit, but source_uri is empty; give the source picture, or neither")
    if mask and box:
        raise _refused("mask_box", "and mask_uri are both given; keep one of them")
    return CatalogRow(
        index=index,
        item_id=item_id,
        subject_uris=subjects,
        subject_class=subject_class,
        prompt=prompt,
        negative_prompt=negative,
        seed=derive_seed(item_id, prompt) if seed is None else seed,
        subject_mask_uri=_location(values, "subject_mask_uri"),
        source_uri=source,
        mask_uri=mask,
        mask_box=box,
        subject_mix=parse_mix(values.get("subject_mix"), len(subjects)),
    )


def parse_box(cell: str | None) -> tuple[int, int, int, int] | None:
    """x0, y0, x1, y1 in pixels of the source, of "10,20,200,180". None if not given."""
    text = (cell or "").strip()
    if not text:
        return None
    if not _BOX.fullmatch(text):
        raise _refused("mask_box", f"is {text[:40]!r}; write x0,y0,x1,y1 in whole pixels, such as 10,20,200,180")
    x0, y0, x1, y1 = (int(number) for number in text.split(","))
    if x0 >= x1 or y0 >= y1:
        raise _refused("mask_box", f"is {text[:40]}, which has no area; x0 < x1 and y0 < y1 are needed")
    return x0, y0, x1, y1


def parse_seed(cell: str | None) -> int | None:
    """A whole number in [0, 2**63); "7.0" counts as 7, because spreadsheets write it so. None if not given."""
    text = (cell or "").strip()
    if not text:
        return None
    if not _INTEGER.fullmatch(text):
        raise _refused("seed", f"is {text[:40]!r}; write a whole number from 0 to 2**63 - 1, or leave it empty")
    digits = text.partition(".")[0]
    # Longer than any accepted seed: refused by its length, because converting a huge text is slow (and limited).
    seed = int(digits) if len(digits.lstrip("+-0")) < 20 else SEED_LIMIT
    if seed < 0 or (digits.startswith("-") and seed != 0) or seed >= SEED_LIMIT:
        raise _refused("seed", f"is {text[:40]}; it must lie between 0 and 2**63 - 1")
    return seed


def _text(
    values: Mapping[str, str | None],
    column: str,
    max_chars: int,
    *,
    required: bool = False,
    pattern: re.Pattern[str] = _UNPRINTABLE,
) -> str:
    text = (values.get(column) or "").strip()
    if required and not text:
        raise _refused(column, "is empty; every row needs one")
    _check_text(column, text, max_chars, pattern)
    return text


def _check_text(column: str, text: str, max_chars: int, pattern: re.Pattern[str] = _UNPRINTABLE) -> None:
    if len(text) > max_chars:
        raise _refused(column, f"has {len(text):,} characters; at most {max_chars:,} are allowed")
    if found := pattern.search(text):
        raise _refused(column, f"contains the character U+{ord(found[0]):04X}, which cannot be printed; remove it")


def _subjects(uris: Sequence[str]) -> tuple[str, ...]:
    subjects = tuple(uri.strip() for uri in uris)
    if not any(subjects):
        raise _refused("subject_uri", "is empty; give the location of the subject's picture")
    if not all(subjects):
        raise _refused("subject_uri", "lists an empty location; remove it")
    if len(subjects) > MAX_SUBJECTS:
        raise _refused("subject_uri", f"lists {len(subjects)} pictures; at most {MAX_SUBJECTS} are allowed")
    for uri in subjects:
        _check_text("subject_uri", uri, MAX_URI_CHARS)
    return subjects


def _location(values: Mapping[str, str | None], column: str) -> str | None:
    return _text(values, column, MAX_URI_CHARS) or None


def _refused(column: str, why: str) -> ItemError:
    return ItemError(ErrorCode.ROW_INVALID, f"{column} {why}.")
