"""What the page of an evaluation shows of one line: its images, and the worst of them with their pictures."""

import functools
from collections.abc import Iterable, Mapping

from ezigen.config import ItemError
from tasks.evaluation.benchmarks import BenchmarkCase
from tasks.evaluation.paper import PaperTable
from tasks.evaluation.tables import ScoredImage, worst_cases
from tasks.reports.evaluation_page import Closer, WorstCase
from tasks.reports.pictures import read_subject, shrunk, to_page_uri
from tasks.storage import Locations

MAX_WORST = 8
"""Cases shown per measure."""
_WORST_BY = ("dino", "dino_sub", "face", "clip_t")
_SIDE_PX = 256


def look_closer(
    table: PaperTable,
    images: Iterable[ScoredImage],
    cases: Mapping[str, BenchmarkCase],
    uris: Mapping[tuple[str, str], str],
    pictures: Locations,
) -> Closer | None:
    """The last line of a table that the evaluated adapter makes; None without any image of it.

    images: of any lines. uris: where images lie, by variant and case. A picture that cannot be read is left out.
    """
    variant = [one for one in table.variants if one.is_own][-1]
    own = tuple(image for image in images if image.variant == variant.name)
    if not own:
        return None
    read = functools.cache(functools.partial(_thumbnail, pictures=pictures))

    def show(image: ScoredImage) -> WorstCase:
        case = cases[image.case_id]
        return WorstCase(
            image, case, read(case.source_uri or case.subject_uris[0]), read(uris[image.variant, image.case_id])
        )

    worst = {measure: tuple(map(show, worst_cases(own, measure, MAX_WORST))) for measure in _WORST_BY}
    return Closer(table.title, variant.title, own, {measure: found for measure, found in worst.items() if found})


def _thumbnail(uri: str, pictures: Locations) -> str:
    try:
        return to_page_uri(shrunk(read_subject(uri, pictures), _SIDE_PX))
    except ItemError:
        return ""
