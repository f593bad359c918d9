"""The sample sheet of a measurement: subjects in the first column, what they look like with each prompt beside them."""

import io
import textwrap
from collections.abc import Iterator, Sequence

from PIL import Image

from ezigen.images import FORMATS
from tasks.inspection.sheet import Cell, draw_sheet
from tasks.reports.wording import score_name
from tasks.training.measurements import MeasuredSample, Measurement
from tasks.training.subjects import HeldOutSubject

_MIN_PX, _MAX_PX = 192, 256
_PX_PER_LETTER = 6.0
_MISSING = (235, 235, 235)


def draw_samples(measurement: Measurement, subjects: Sequence[HeldOutSubject], image_size_px: int) -> Image.Image:
    """The samples in their order, a row per subject; those that were not finite are grey."""
    side = min(max(image_size_px, _MIN_PX), _MAX_PX)
    num_prompts = len(measurement.samples) // len(subjects)
    cells = list(_cells(measurement.samples, {subject.pair_id: subject for subject in subjects}, side))
    return draw_sheet(cells, picture_px=side, num_columns=1 + num_prompts, title=measurement.describe())


def _cells(samples: Sequence[MeasuredSample], subjects: dict[str, HeldOutSubject], side: int) -> Iterator[Cell]:
    last = ""
    for sample in samples:
        if sample.pair_id != last:
            last = sample.pair_id
            yield Cell((subjects[last].picture.rgb,), (subjects[last].subject_class, last))
        picture = _open(sample.picture, side)
        scores = ", ".join(f"{score_name(name)} {value:.2f}" for name, value in sample.scores.items())
        yield Cell((picture,), (*_lines(sample.prompt, side), scores if sample.picture else "not finite"))


def _open(png: bytes | None, side: int) -> Image.Image:
    if png is None:
        return Image.new("RGB", (side, side), _MISSING)
    with Image.open(io.BytesIO(png), formats=FORMATS) as picture:
        return picture.convert("RGB")


def _lines(prompt: str, side: int) -> list[str]:
    """The prompt in two lines at most; drawing cuts what is still too long."""
    lines = textwrap.wrap(prompt, round(side / _PX_PER_LETTER)) or [""]
    return [lines[0], " ".join(lines[1:])] if len(lines) > 1 else lines
