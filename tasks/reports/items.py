"""The items of a page as compact JSON columns, and their preview strips as text."""

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.catalog.results import ResultRow
from tasks.reports.selection import PictureBudget

MAX_PICTURE_BYTES = 512 * 1024
"""A larger preview is not shown: one item must not crowd out the others."""

MAX_TEXT_CHARS = 600
_OWN_IMAGE = re.compile(r"images/([0-9a-f]{2})/\1[0-9a-f]{30}(\.png|\.jpg|\.webp)")
_KINDS = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)


@dataclass(frozen=True)
class Strip:
    """A preview strip as a data URI, for the item at `position` of the columns."""

    position: int
    text: str


@dataclass
class _Strings:
    """Texts that many items share, stored once; the columns hold their places."""

    places: dict[str, int] = field(default_factory=dict)

    def place(self, text: str | None) -> int | None:
        return None if not text else self.places.setdefault(text, len(self.places))


def to_data_uri(picture: bytes | None) -> str | None:
    """A picture as a data URI, or None if it is absent, too large or of a kind that browsers do not show."""
    if not picture or len(picture) > MAX_PICTURE_BYTES:
        return None
    kind = next((kind for signature, kind in _KINDS if signature.match(picture)), None)
    return kind and f"data:{kind};base64,{base64.b64encode(picture).decode()}"


@dataclass
class PageItems:
    """Collects the page's items from resolved rows in any order. Previews beyond the budget are left out."""

    priorities: Mapping[str, int]
    budget: PictureBudget
    rows: dict[str, ResultRow] = field(default_factory=dict)

    def add(self, row: ResultRow) -> None:
        """Take an item; the preview of an item without a priority is not kept."""
        priority = self.priorities.get(row.item_key)
        strip = to_data_uri(row.preview) if priority is not None and row.preview_panels > 0 else None
        if priority is not None and strip is not None:
            self.budget.offer(priority, row.item_key, strip)
        self.rows[row.item_key] = _without_preview(row)

    def ordered(self) -> list[ResultRow]:
        """The items in the catalog's order."""
        return sorted(self.rows.values(), key=lambda row: (row.row_index, row.item_key))

    def strips(self) -> list[Strip]:
        """The kept strips with their items' positions."""
        kept = self.budget.kept()
        return [Strip(at, kept[row.item_key]) for at, row in enumerate(self.ordered()) if row.item_key in kept]

    def columns(self) -> dict[str, Any]:
        """JSON values: `strings`, and `columns` of equal length, some of which hold places in `strings`."""
        rows, kept, strings = self.ordered(), self.budget.kept(), _Strings()
        columns = {**_identity(rows, strings), **_making(rows, strings), **_outcome(rows, strings)}
        columns["picture"] = [int(row.item_key in kept) for row in rows]
        return {"columns": columns, "strings": list(strings.places)}


def _without_preview(row: ResultRow) -> ResultRow:
    values = {name: value for name, value in vars(row).items() if name != "preview"}
    return ResultRow(**values)


def _identity(rows: list[ResultRow], strings: _Strings) -> dict[str, list[Any]]:
    return {
        "id": [row.item_id for row in rows],
        "key": [row.item_key for row in rows],
        "index": [row.row_index for row in rows],
        "prompt": [strings.place(_cut(row.prompt)) for row in rows],
        "class": [strings.place(_cut(row.subject_class)) for row in rows],
        "subject": [_cut(row.subject_uri) for row in rows],
        "source": [strings.place(_cut(row.source_uri or "")) for row in rows],
        # A seed may exceed what a browser counts exactly.
        "seed": [None if row.seed is None else str(row.seed) for row in rows],
        "run": [strings.place(row.run_id) for row in rows],
    }


def _making(rows: list[ResultRow], strings: _Strings) -> dict[str, Any]:
    names = sorted({name for row in rows for name in row.scores})
    return {
        "loops": [row.num_loops for row in rows],
        "stop": [strings.place(row.stop_reason) for row in rows],
        "similarities": [[_rounded(value, 4) or 0 for value in row.similarities] for row in rows],
        "scores": {name: [_rounded(row.scores.get(name), 5) for row in rows] for name in names},
        "calls": [row.num_unet_calls for row in rows],
        "seconds": [_rounded(row.seconds, 3) for row in rows],
        "worker": [strings.place(_cut(row.worker)) for row in rows],
    }


def _outcome(rows: list[ResultRow], strings: _Strings) -> dict[str, list[Any]]:
    return {
        "failed": [int(row.status == "failed") for row in rows],
        "attempts": [row.attempts for row in rows],
        "code": [strings.place(row.error_code) for row in rows],
        "message": [_cut(row.error_message or "") for row in rows],
        "finished": [round(row.finished_at.timestamp()) for row in rows],
        "panels": [row.preview_panels for row in rows],
        "image": [strings.place(_own_image_suffix(row)) for row in rows],
        "width": [row.width_px for row in rows],
        "height": [row.height_px for row in rows],
    }


def _own_image_suffix(row: ResultRow) -> str | None:
    """How its name ends if the image lies where the page will look for it: a path made of the key."""
    matched = _OWN_IMAGE.fullmatch(row.image_uri or "")
    return matched.group(2) if matched is not None and row.item_key in matched.group() else None


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)
