"""The page on which people look at the images of a run and approve or reject them."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ezigen.config import ConfigurationError, ErrorCode, ItemError
from ezigen.images import decode_picture
from tasks.catalog.results import ResultRow, from_batch
from tasks.catalog.rows import split_uris
from tasks.reports.contact_sheet import split_strip
from tasks.reports.pictures import choose_side, read_stored, read_subject, shrunk, subject_locations, to_page_uri
from tasks.reports.rendering import embed_json, render, template_text
from tasks.reports.report import output_name
from tasks.reports.selection import Smallest, rank_values
from tasks.reports.wording import SCORE_NAMES
from tasks.reviews.decisions import MAX_NOTE_CHARS, Reviews, review_mask
from tasks.storage import ResultsLedger, RunOutput, locate
from tasks.storage.writing import write_atomic

PAGE_PATH = "review.html"
_SUBJECT_PX = 192
_PARALLEL_READS = 8
_SCRIPTS = ("elements.js", "keeping.js", "review.js")
_STYLES = ("report.css", "work.css", "review.css")


@dataclass(frozen=True)
class ReviewRequest:
    """Which images a page shows."""

    max_items: int = 500
    """The worst by score."""
    below: Mapping[str, float] = field(default_factory=dict)
    """Only images with one of these scores below its value."""
    unreviewed: bool = False
    """Only images about which nothing is decided yet."""


@dataclass(frozen=True)
class Review:
    """What was written."""

    page_uri: str
    num_items: int
    num_selected: int
    """Images that the request would have allowed."""
    side_px: int
    page_bytes: int
    left_out: Mapping[str, str]
    """item_id -> why its image cannot be shown."""


@dataclass
class _PageItems:
    """What is collected for the page."""

    rows: list[ResultRow] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    num_subjects: list[int] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def write_review(output: RunOutput, request: ReviewRequest | None = None, to_uri: str = "") -> Review:
    """Writes the page, into the output unless another place is named.

    Raises ConfigurationError if no image fits the request, or none of those that do can be shown.
    """
    request = request or ReviewRequest()
    ledger, reviews = ResultsLedger(output), Reviews.of(output)
    keys, num_selected = _choose(ledger, reviews, request)
    if not keys:
        raise ConfigurationError(f"{output.root_uri}: no image fits; loosen --below or leave out --unreviewed.")
    side_px = choose_side(len(keys))
    items = _collect(output, ledger, keys, side_px)
    if not items.rows:
        name, reason = next(iter(items.left_out.items()))
        raise ConfigurationError(f"none of {len(keys)} images can be shown; the first one, {name}: {reason}")
    html = _render(output, items, reviews)
    uri = _write(output, html, to_uri)
    return Review(uri, len(items.rows), num_selected, side_px, len(html), items.left_out)


def _write(output: RunOutput, html: bytes, to_uri: str) -> str:
    if not to_uri:
        return output.write(PAGE_PATH, html)
    location = locate(to_uri)
    if location.suffix not in (".html", ".htm"):
        raise ConfigurationError(f"--to {to_uri}: the page's name must end in .html.")
    write_atomic(output.locations.filesystem(location), location.path, html)
    return location.uri


# ---- which images


def _choose(ledger: ResultsLedger, reviews: Reviews, request: ReviewRequest) -> tuple[list[str], int]:
    """Keys of the images, the worst first, and how many would have fitted."""
    worst, num_selected = Smallest(request.max_items, ("rank", "ascending")), 0
    for batch in ledger.batches("done", ["item_key", "image_sha256", "scores", "similarities"]):
        kept = batch.filter(_below_mask(batch, request.below)) if request.below else batch
        if request.unreviewed:
            kept = kept.filter(review_mask(reviews, kept, "unreviewed"))
        num_selected += len(kept)
        worst.add(pa.table({"item_key": kept.column("item_key"), "rank": rank_values(kept)}))
    return worst.keys(), num_selected


def _below_mask(batch: pa.RecordBatch, below: Mapping[str, float]) -> pa.Array:
    mask = pa.array([False] * len(batch), pa.bool_())
    for name, value in below.items():
        score = pc.map_lookup(batch.column("scores"), query_key=name, occurrence="first")
        mask = pc.or_(mask, pc.fill_null(pc.less(score, value), fill_value=False))
    return mask


def _collect(output: RunOutput, ledger: ResultsLedger, keys: list[str], side_px: int) -> _PageItems:
    """Rows in the order of the keys, with their pictures made small."""
    places, draw_subject = {key: place for place, key in enumerate(keys)}, _subject_drawer(output)
    found: dict[int, tuple[ResultRow, list[str]]] = {}
    left_out: dict[int, tuple[str, str]] = {}

    def draw(row: ResultRow) -> None:
        place = places[row.item_key]
        try:
            image = to_page_uri(shrunk(_read_image(output, row), side_px))
        except ItemError as error:
            left_out[place] = (row.item_id, error.message)
            return
        found[place] = (row, [image, *_draw_subjects(row, draw_subject)])

    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="read-images") as pool:
        list(pool.map(draw, _rows(ledger, keys)))
    items = _PageItems(left_out=dict(left_out[place] for place in sorted(left_out)))
    for number, place in enumerate(sorted(found)):
        row, (image, *subjects) = found[place]
        items.rows.append(row)
        items.num_subjects.append(len(subjects))
        items.pictures[f"image-{number}"] = image
        items.pictures |= {f"subject-{number}-{at}": subject for at, subject in enumerate(subjects)}
    return items


def _rows(ledger: ResultsLedger, keys: list[str]) -> Iterator[ResultRow]:
    wanted = pa.array(sorted(keys), pa.string())
    for batch in ledger.batches("done"):
        yield from from_batch(batch.filter(pc.is_in(batch.column("item_key"), wanted)))


def _read_image(output: RunOutput, row: ResultRow) -> Image.Image:
    data = read_stored(output, row.image_uri or "")
    if hashlib.sha256(data).hexdigest() != row.image_sha256:
        raise ItemError(
            ErrorCode.IMAGE_MISSING, "its file was changed since the run, so nothing can be decided about it"
        )
    return decode_picture(data, min_side_px=1).rgb


def _subject_drawer(output: RunOutput) -> Callable[[str], str] | None:
    """Draws the picture at a row's location for the page; many rows share one. None where they cannot be read."""
    locations = subject_locations(output)
    if locations is None:
        return None

    @functools.lru_cache(maxsize=256)
    def draw(uri: str) -> str:
        return to_page_uri(shrunk(read_subject(uri, locations), _SUBJECT_PX))

    return draw


def _draw_subjects(row: ResultRow, draw: Callable[[str], str] | None) -> list[str]:
    """The subject's pictures, or what the preview strip has of them where they cannot be read from here."""
    try:
        if draw is not None:
            return [draw(uri) for uri in split_uris(row.subject_uri)]
    except ItemError:
        pass
    shown = split_strip(row)[:1] if row.preview and row.preview_panels > 1 else []
    return [to_page_uri(shrunk(picture, _SUBJECT_PX)) for picture in shown]


# ---- the page


def _render(output: RunOutput, items: _PageItems, reviews: Reviews) -> bytes:
    page = render(
        "review.html.j2",
        style=template_text(*_STYLES),
        script=template_text(*_SCRIPTS),
        beside=False,
        name=output_name(output),
        num_left_out=len(items.left_out),
        max_note_chars=MAX_NOTE_CHARS,
        data=embed_json(_page_data(output, items, reviews)),
        pictures=items.pictures,
    )
    return page.encode()


def _page_data(output: RunOutput, items: _PageItems, reviews: Reviews) -> dict[str, Any]:
    names = {name for row in items.rows for name in _scores(row)}
    return {
        "name": output_name(output),
        # What was decided is kept by the place of the output, so that a new page of it goes on.
        "place": hashlib.sha256(output.root_uri.encode()).hexdigest()[:32],
        "scores": {name: SCORE_NAMES.get(name, (name, ""))[0] for name in sorted(names)},
        "items": [
            {
                "key": row.item_key,
                "id": row.item_id,
                "sha256": row.image_sha256,
                "index": row.row_index,
                "prompt": row.prompt,
                "subjects": num_subjects,
                "scores": _scores(row),
                **_decided(row, reviews),
            }
            for row, num_subjects in zip(items.rows, items.num_subjects, strict=True)
        ],
    }


def _scores(row: ResultRow) -> dict[str, float]:
    known = ((name, value) for name, value in row.scores.items() if value is not None)
    return {name: round(value, 4) for name, value in known if math.isfinite(value)}


def _decided(row: ResultRow, reviews: Reviews) -> dict[str, str]:
    reviewed = reviews.find(row.item_key, row.image_sha256)
    if reviewed is None:
        return {}
    return {"decision": reviewed.decision.decision, "note": reviewed.decision.note, "reviewer": reviewed.reviewer}
