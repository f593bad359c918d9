"""The page of a set of training pairs: what it holds, what was left out and why, and what some pairs look like."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from ezigen.images import FORMATS
from tasks.reports.charts import Chart, Share, count_chart, value_chart
from tasks.reports.figures import SparseBins
from tasks.reports.overview import Fact, FactGroup, Number, ProgressPart, list_runs, list_settings
from tasks.reports.refusals import explain_refusal
from tasks.reports.rendering import render, template_text
from tasks.reports.wording import RUN_STATES, format_number, plural
from tasks.storage.run_record import RunRecord

SOURCE_NAMES = {"coco": "COCO", "youtube_vis": "YouTube-VIS"}
_GROUPS = {"coco": "pictures", "youtube_vis": "objects of videos"}
_STRIP_SIDE_PX = 144
_STRIP_GAP_PX = 6
_BOX_COLOUR = (79, 111, 214)
_MAX_CLASSES = 12


@dataclass(frozen=True)
class CardPair:
    """One pair of the contact sheet. `strip` is a JPEG: subject, mask, target with the subject's box."""

    pair_id: str
    caption: str
    subject_class: str
    area_share: float
    frame_distance: int | None
    strip: bytes

    @property
    def source(self) -> str:
        """The strip as an address that needs no file."""
        return "data:image/jpeg;base64," + base64.b64encode(self.strip).decode()


@dataclass(frozen=True)
class CardSource:
    """One data set."""

    source: str
    wanted: int
    built: int
    candidates: int
    groups: int
    classes: tuple[tuple[str, int], ...]
    not_selected: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """As people call it."""
        return SOURCE_NAMES.get(self.source, self.source)

    @property
    def group_name(self) -> str:
        """What its candidates are grouped by."""
        return _GROUPS.get(self.source, "groups")

    @property
    def missing(self) -> int:
        """Pairs that were asked for and are not there."""
        return max(0, self.wanted - self.built)


@dataclass(frozen=True)
class RefusalGroup:
    """Refused candidates of one reason, and the first of them."""

    reason: str
    count: int
    example_id: str
    example_message: str


@dataclass(frozen=True)
class PairsCard:
    """Everything that the page shows but the record of runs."""

    name: str
    sources: tuple[CardSource, ...]
    refusals: tuple[RefusalGroup, ...]
    areas: Mapping[str, SparseBins]
    distances: SparseBins
    column_bytes: Mapping[str, int]
    num_shards: int
    num_rounds: int
    settings: Mapping[str, Any]
    pairs: tuple[CardPair, ...]

    @property
    def built(self) -> int:
        """Pairs of all sources."""
        return sum(source.built for source in self.sources)

    @property
    def wanted(self) -> int:
        """Pairs that were asked for."""
        return sum(source.wanted for source in self.sources)

    @property
    def refused(self) -> int:
        """Candidates that were looked at and refused."""
        return sum(group.count for group in self.refusals)


def make_strip(subject: bytes, mask: bytes, target: bytes | None, target_box: Sequence[float], size_px: int) -> bytes:
    """A JPEG of subject, mask and target side by side; a target that is stored by reference is left out.

    target_box: x, y, width, height in pixels of a target of `size_px`; it is drawn into it.
    """
    panels = [_panel(subject), _panel(mask)]
    if target is not None:
        panels.append(_draw_box(_panel(target), target_box, _STRIP_SIDE_PX / size_px))
    step = _STRIP_SIDE_PX + _STRIP_GAP_PX
    strip = Image.new("RGB", (step * len(panels) - _STRIP_GAP_PX, _STRIP_SIDE_PX), (255, 255, 255))
    for place, panel in enumerate(panels):
        strip.paste(panel, (place * step, 0))
    data = io.BytesIO()
    strip.save(data, "JPEG", quality=86)
    return data.getvalue()


def render_card(card: PairsCard, record: RunRecord | None) -> str:
    """The page's HTML; the same for the same set and record."""
    state = record.state if record else "unknown"
    return render(
        "pairs_card.html.j2",
        style=template_text("report.css"),
        script=template_text("charts.js") + "startCharts();\n",
        card=card,
        state=state,
        state_title=RUN_STATES.get(state, "No run.json"),
        message=record.message if record else "",
        headline=list(_headline(card)),
        progress=list(_progress(card)),
        numbers=list(_numbers(card)),
        charts=[chart for chart in _charts(card) if chart],
        class_lists=[(source, _class_shares(source)) for source in card.sources if source.classes],
        refusals=[(group, explain_refusal(group.reason)) for group in card.refusals],
        omissions=[
            (source, [(explain_refusal(reason), count) for reason, count in source.not_selected])
            for source in card.sources
            if source.not_selected
        ],
        settings=_settings(card, record),
        runs=list_runs(record),
    )


# ---- pictures


def _panel(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        return picture.convert("RGB").resize((_STRIP_SIDE_PX, _STRIP_SIDE_PX), Image.Resampling.LANCZOS)


def _draw_box(panel: Image.Image, box: Sequence[float], scale: float) -> Image.Image:
    x, y, width, height = (value * scale for value in box)
    last = _STRIP_SIDE_PX - 1
    corners = (min(x, last - 1), min(y, last - 1), min(max(x + width, x + 1), last), min(max(y + height, y + 1), last))
    draw = ImageDraw.Draw(panel)
    draw.rectangle(corners, outline=(255, 255, 255), width=4)
    draw.rectangle(corners, outline=_BOX_COLOUR, width=2)
    return panel


# ---- words and numbers


def _headline(card: PairsCard) -> Iterator[str]:
    missing = sum(source.missing for source in card.sources)
    if not card.built:
        yield "There is no pair yet."
    elif missing:
        yield f"{format_number(card.built)} of the {plural(card.wanted, 'pair')} that were asked for are built."
    else:
        yield f"All {plural(card.built, 'pair')} are built."
    for source in card.sources:
        if source.missing and source.built + card.refused >= source.candidates:
            yield f"{source.name} offers no more than {plural(source.candidates, 'candidate')}."


def _progress(card: PairsCard) -> Iterator[ProgressPart]:
    total, start = max(card.wanted, 1), 0.0
    missing = sum(source.missing for source in card.sources)
    for label, style, count in (("built", "part-done", card.built), ("missing", "part-rest", missing)):
        if count:
            yield ProgressPart(label, style, count, start, min(count / total, 1.0 - start))
            start += count / total


def _numbers(card: PairsCard) -> Iterator[Number]:
    for source in card.sources:
        yield Number(f"pairs of {source.name}", format_number(source.built))
    num_classes = len({name for source in card.sources for name, _ in source.classes})
    yield Number("class" if num_classes == 1 else "classes", format_number(num_classes))
    yield Number("candidates refused", format_number(card.refused))
    value, unit = _size(sum(card.column_bytes.values()))
    yield Number(f"in {plural(card.num_shards, 'shard')}", value, unit)
    if card.built:
        value, unit = _size(sum(card.column_bytes.values()) / card.built)
        yield Number("per pair", value, unit)


def _size(num_bytes: float) -> tuple[str, str]:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g}", unit
    return f"{num_bytes / 1e3:.3g}", "kB"


def _charts(card: PairsCard) -> Iterator[Chart | None]:
    for source, bins in card.areas.items():
        name = SOURCE_NAMES.get(source, source)
        note = f"half below {bins.quantile(0.5):.3f}, 95 % below {bins.quantile(0.95):.3f}"
        titles = (f"Areas of subjects, {name}", "share of the picture that the subject covers")
        yield value_chart(f"area-{source}", titles, note, bins, "pair")
    median = card.distances.quantile(0.5)
    note = "" if median is None else f"half at {int(median)} or less"
    titles = ("Distances of frames", "frames that show the object, from the subject's to the target's")
    yield count_chart("distance", titles, note, card.distances, "pair")


def _class_shares(source: CardSource) -> list[Share]:
    """The most frequent classes; all others are one line."""
    shown, rest = source.classes[:_MAX_CLASSES], source.classes[_MAX_CLASSES:]
    shares = [Share(name, "", count, count / source.built) for name, count in shown]
    if rest:
        count = sum(number for _, number in rest)
        shares.append(
            Share(plural(len(rest), "other class") + ("es" if len(rest) > 1 else ""), "", count, count / source.built)
        )
    return shares


def _settings(card: PairsCard, record: RunRecord | None) -> list[FactGroup]:
    chosen = FactGroup("Pairs", tuple(Fact(name, str(value)) for name, value in card.settings.items()))
    shown = ("Run", "Cluster", "Versions", "Counts", "Measurements")
    return [chosen, *(group for group in list_settings(record) if group.title in shown)]
