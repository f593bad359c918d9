"""What a table's lines look like: a row per case, the subject first (of an edit also the source), then every line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from PIL import Image

from ezigen.config import ItemError
from ezigen.images import Picture, decode_picture, fit_square
from tasks.evaluation.benchmarks import BenchmarkCase
from tasks.evaluation.tables import MeasuredTable
from tasks.inspection.sheet import Cell, draw_sheet
from tasks.reports.wording import SHARES, score_name
from tasks.storage import Locations

MAX_CASES = 12
_PICTURE_PX = 144
_MAX_SCORES = 2
"""So many fit below a picture."""


@dataclass(frozen=True)
class ShownCase:
    """A case with the location and the scores of its image in every line of a table."""

    case: BenchmarkCase
    images: tuple[tuple[str, Mapping[str, float]], ...]


def draw_table(measured: MeasuredTable, cases: Sequence[ShownCase], pictures: Locations) -> Image.Image | None:
    """At most MAX_CASES of the cases, of as many subjects as there are; None where no case is complete."""
    titles = [variant.title for variant in measured.table.variants]
    cells = [cell for one in spread(cases, MAX_CASES) for cell in _draw_case(one, titles, measured, pictures)]
    if not cells:
        return None
    num_given = 2 if cases[0].case.source_uri else 1
    return draw_sheet(cells, picture_px=_PICTURE_PX, num_columns=num_given + len(titles), title=measured.table.title)


def spread(cases: Sequence[ShownCase], count: int) -> list[ShownCase]:
    """So many of the cases, in order: one of every subject, then another one of each, each with another prompt."""
    by_subject: dict[str, list[ShownCase]] = {}
    for case in cases:
        by_subject.setdefault(case.case.subject_id, []).append(case)
    turned = [group[n % len(group) :] + group[: n % len(group)] for n, group in enumerate(by_subject.values())]
    in_turns = [case for turn in zip_longest(*turned) for case in turn if case is not None]
    chosen = {one.case.case_id for one in in_turns[:count]}
    return [one for one in cases if one.case.case_id in chosen]


def _draw_case(shown: ShownCase, titles: Sequence[str], measured: MeasuredTable, pictures: Locations) -> list[Cell]:
    try:
        case = shown.case
        cells = [Cell((_read(case.subject_uris[0], pictures),), (case.subject_id, case.prompt))]
        if case.source_uri:
            cells.append(Cell((_read(case.source_uri, pictures),), ("source", case.prompt_id)))
        for title, (uri, scores) in zip(titles, shown.images, strict=True):
            known = [name for name in measured.table.measures if name in scores and name not in SHARES][:_MAX_SCORES]
            said = [f"{score_name(name)} {scores[name]:.2f}" for name in known]
            cells.append(Cell((_read(uri, pictures),), (title, ", ".join(said))))
    except ItemError:  # it has no scores either, and its row says why
        return []
    return cells


def _read(uri: str, pictures: Locations) -> Image.Image:
    picture = decode_picture(pictures.read_bytes(uri))
    return fit_square(Picture(picture.rgb), max(picture.rgb.size)).rgb
