"""Decisions about images: checked, stored in the output that they speak of, and resolved.

A decision is about one image, not about an item: it names the SHA-256 of the image's bytes, and counts as long as the
item's result row does so too.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from ezigen.config import ConfigurationError, ItemError
from tasks.catalog.results import ResultRow
from tasks.reports.pictures import read_stored
from tasks.storage import Locations, ResultsLedger, RunOutput
from tasks.storage.documents import check_name, decode_document, encode_document, read_document

ReviewState = Literal["approved", "rejected", "unreviewed"]

FOLDER = "review"
MAX_NOTE_CHARS = 2000
_NAME = re.compile(r"[0-9a-f]{32}\.json")
_WHAT = "a file of decisions"
_MAX_SHOWN = 5
_PARALLEL_READS = 16
_CLOCK_ERROR = timedelta(days=1)


class Decision(msgspec.Struct, frozen=True):
    """What one person decided about one image."""

    item_key: str
    item_id: str
    image_sha256: str
    decision: Literal["approved", "rejected"]
    decided_at: datetime
    note: str = ""


class DecisionsFile(msgspec.Struct, frozen=True):
    """What a page exports, and what an output stores."""

    format: Literal["ezigen-review/1"]
    reviewer: str
    decisions: list[Decision]


@dataclass(frozen=True)
class Reviewed:
    """The decision that counts for an item."""

    decision: Decision
    reviewer: str


@dataclass(frozen=True)
class Applied:
    """What storing a file of decisions did. `num_overruled`: those that stored ones, made later, overrule."""

    uri: str
    reviewer: str
    num_approved: int
    num_rejected: int
    num_overruled: int


class Reviews:
    """The stored decisions of an output. Of several about one item the one that was made last counts."""

    def __init__(self, by_key: Mapping[str, Reviewed]) -> None:
        self._by_key = by_key

    @classmethod
    def of(cls, output: RunOutput) -> "Reviews":
        """Reads them. Raises ConfigurationError, naming it, for a damaged file."""
        names = [name for name in output.list(FOLDER) if _NAME.fullmatch(name)]
        uris = [output.uri(f"{FOLDER}/{name}") for name in names]
        read = [output.read(f"{FOLDER}/{name}") for name in names]
        named = zip(read, uris, strict=True)
        return cls(_resolve(decode_document(data, uri, DecisionsFile, _WHAT) for data, uri in named))

    def find(self, item_key: str, image_sha256: str | None) -> Reviewed | None:
        """What was decided about an item's image as it is now."""
        reviewed = self._by_key.get(item_key)
        return reviewed if reviewed is not None and reviewed.decision.image_sha256 == image_sha256 else None

    def state(self, item_key: str, image_sha256: str | None) -> ReviewState:
        """The state of an image."""
        reviewed = self.find(item_key, image_sha256)
        return "unreviewed" if reviewed is None else reviewed.decision.decision


def _resolve(files: Iterable[DecisionsFile]) -> dict[str, Reviewed]:
    latest: dict[str, Reviewed] = {}
    for file in files:
        for decision in file.decisions:
            before = latest.get(decision.item_key)
            if before is None or _order(decision, file.reviewer) > _order(before.decision, before.reviewer):
                latest[decision.item_key] = Reviewed(decision, file.reviewer)
    return latest


def _order(decision: Decision, reviewer: str) -> tuple[datetime, bool, str]:
    """Later ones are greater; of two at one moment the rejection, which publishes nothing wrong."""
    return decision.decided_at, decision.decision == "rejected", reviewer


def apply_decisions(output: RunOutput, uri: str, locations: Locations | None = None) -> Applied:
    """Stores a file of decisions in the output, under a digest of what it says: applying it twice changes nothing.

    Raises ConfigurationError, and stores nothing, for a damaged file and for decisions about items that the run does
    not have or about images that are no longer those that were looked at.
    """
    given = read_document(uri, DecisionsFile, _WHAT, locations or output.locations)
    reviewer = check_name(given.reviewer, f"{uri}: the reviewer")
    _check(uri, given.decisions)
    if problems := _find_problems(output, given.decisions):
        shown = "; ".join(problems[:_MAX_SHOWN]) + ("; ..." if len(problems) > _MAX_SHOWN else "")
        raise ConfigurationError(
            f"{uri}: {len(problems)} of {len(given.decisions)} decisions do not fit {output.root_uri}: {shown}. "
            "Nothing was stored; make a new page of this output and look at these items again."
        )
    ordered = sorted(given.decisions, key=lambda decision: decision.item_key)
    data = encode_document(DecisionsFile(given.format, reviewer, ordered))
    stored = output.write(f"{FOLDER}/{hashlib.sha256(data).hexdigest()[:32]}.json", data)
    reviews = Reviews.of(output)
    found = [reviews.find(decision.item_key, decision.image_sha256) for decision in ordered]
    num_approved = sum(decision.decision == "approved" for decision in ordered)
    num_overruled = sum(one is None or one.decision != mine for one, mine in zip(found, ordered, strict=True))
    return Applied(stored, reviewer, num_approved, len(ordered) - num_approved, num_overruled)


def _check(uri: str, decisions: Sequence[Decision]) -> None:
    """What can be wrong without looking at the output."""
    if not decisions:
        raise ConfigurationError(f"{uri} holds no decisions; export it again.")
    keys: set[str] = set()
    for decision in decisions:
        what = f"{uri}: the decision about {decision.item_id[:80]!r}"
        if decision.item_key in keys:
            raise ConfigurationError(f"{what} stands there twice; keep one of them.")
        keys.add(decision.item_key)
        if decision.decided_at.tzinfo is None:
            raise ConfigurationError(f"{what} has a time without a time zone; export it again.")
        # Nobody could ever overrule it.
        if decision.decided_at > datetime.now(UTC) + _CLOCK_ERROR:
            raise ConfigurationError(f"{what} was made in the future; set the reviewer's clock and export it again.")
        if len(decision.note) > MAX_NOTE_CHARS:
            raise ConfigurationError(f"{what} has a note of more than {MAX_NOTE_CHARS:,} characters; shorten it.")


def _find_problems(output: RunOutput, decisions: Sequence[Decision]) -> list[str]:
    rows = _read_rows(output, [decision.item_key for decision in decisions])
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="check-images") as pool:
        found = pool.map(lambda decision: _problem(output, decision, rows.get(decision.item_key)), decisions)
    return [problem for problem in found if problem]


def _problem(output: RunOutput, decision: Decision, row: ResultRow | None) -> str:
    name = repr(decision.item_id[:80])
    if row is None or row.item_id != decision.item_id:
        return f"{name} is no item with an image in it"
    if row.image_sha256 != decision.image_sha256:
        return f"the image of {name} was made again since"
    try:
        data = read_stored(output, row.image_uri or "")
    except ItemError as error:
        return f"the image of {name} is gone ({error.message})"
    changed = hashlib.sha256(data).hexdigest() != decision.image_sha256
    return f"the image of {name} was changed since" if changed else ""


def _read_rows(output: RunOutput, item_keys: Sequence[str]) -> dict[str, ResultRow]:
    """The done rows of these items."""
    wanted = set(item_keys)
    rows = ResultsLedger(output).rows("done", ["image_uri", "image_sha256"])
    return {row.item_key: row for row in rows if row.item_key in wanted}


def review_mask(reviews: Reviews, batch: pa.RecordBatch, state: ReviewState) -> pa.Array:
    """Which rows of a batch with item_key and image_sha256 are in a state."""
    keys, hashes = (batch.column(name).to_pylist() for name in ("item_key", "image_sha256"))
    states = [reviews.state(key, sha256) for key, sha256 in zip(keys, hashes, strict=True)]
    return pc.equal(pa.array(states, pa.string()), state)
