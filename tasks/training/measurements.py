"""What is measured while training, and how it is stored: validation/<step>.json and <step>.jpg. Needs no torch."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ezigen.config import ConfigurationError
from tasks.inspection.sheet import to_jpeg
from tasks.reports.wording import format_decimal, format_number, score_name
from tasks.storage import OutputFolder
from tasks.storage.filesystems import describe_error, with_retries

FOLDER = "validation"
SCORES = ("clip_t", "dino")
LOSS = "held_out_loss"


@dataclass(frozen=True)
class MeasuredSample:
    """One held-out subject with one prompt. `picture` is a PNG; None where the image was not finite, and when read."""

    number: int
    pair_id: str
    subject_class: str
    prompt: str
    scores: Mapping[str, float]
    picture: bytes | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Measurement:
    """The adapters after `step` train steps, measured. A number is None where there was nothing to measure."""

    step: int
    held_out_loss: float | None
    num_pairs: int
    clip_t: float | None
    dino: float | None
    samples: tuple[MeasuredSample, ...] = ()
    sheet: Image.Image | None = field(default=None, compare=False, repr=False)
    """Subjects in the first column, one prompt per further column."""

    def numbers(self) -> dict[str, float]:
        """What was measured, by name: held_out_loss, clip_t, dino."""
        values = {name: getattr(self, name) for name in (LOSS, *SCORES)}
        return {name: value for name, value in values.items() if value is not None}

    def describe(self) -> str:
        """Step 500: held-out loss 0.123, CLIP-T 0.312, DINO 0.654."""
        texts = [f"{measure_name(name)} {format_decimal(value)}" for name, value in self.numbers().items()]
        return f"step {format_number(self.step)}: {', '.join(texts) or 'nothing measured'}"


def measure_name(name: str) -> str:
    """What people call a number of `Measurement.numbers`."""
    return "held-out loss" if name == LOSS else score_name(name)


def mean_score(samples: Sequence[MeasuredSample], score: str) -> float | None:
    """The mean over the samples that have this score; None if none has."""
    values = [sample.scores[score] for sample in samples if score in sample.scores]
    return math.fsum(values) / len(values) if values else None


def write_measurement(output: OutputFolder, measurement: Measurement) -> str:
    """Stores the sheet, if there is one, and then the numbers; returns the location of the latter."""
    if measurement.sheet is not None:
        output.write(sheet_path(measurement.step), to_jpeg(measurement.sheet))
    return output.write(_json_path(measurement.step), _to_json(measurement))


def read_measurements(output: OutputFolder) -> list[Measurement]:
    """What was measured so far, by step, without pictures. Raises ConfigurationError for a file that is damaged."""
    return [_read(output, _json_path(step)) for step in measured_steps(output)]


def measured_steps(output: OutputFolder) -> list[int]:
    """The steps whose measurement is stored, in order."""
    return sorted(int(name.removesuffix(".json")) for name in output.list(FOLDER) if name.endswith(".json"))


def remove_measurements_after(output: OutputFolder, step: int) -> None:
    """Deletes what was measured after later steps than this one, numbers before sheets."""
    later = [name for name in output.list(FOLDER) if int(name.partition(".")[0]) > step]
    filesystem = output.filesystem
    for name in sorted(later, key=lambda name: (not name.endswith(".json"), name)):
        path = output.path(f"{FOLDER}/{name}")
        with contextlib.suppress(FileNotFoundError):
            with_retries(lambda path=path: filesystem.rm_file(path), f"deleting {path}")  # type: ignore[misc]


def list_sheets(output: OutputFolder) -> list[int]:
    """The steps that have a sample sheet, in order."""
    return sorted(int(name.removesuffix(".jpg")) for name in output.list(FOLDER) if name.endswith(".jpg"))


def read_sheets(output: OutputFolder, steps: Sequence[int]) -> dict[int, bytes]:
    """Sample sheets by step, as JPEG."""
    return {step: output.read(sheet_path(step)) for step in steps}


def sheet_path(step: int) -> str:
    """Where the sample sheet of a step lies, relative to the run's folder."""
    return f"{FOLDER}/{step:08d}.jpg"


def _json_path(step: int) -> str:
    return f"{FOLDER}/{step:08d}.json"


def _to_json(measurement: Measurement) -> bytes:
    content = {
        "kind": "measurement",
        "version": 1,
        "step": measurement.step,
        "num_pairs": measurement.num_pairs,
        **{name: getattr(measurement, name) for name in (LOSS, *SCORES)},
        "samples": [_sample_values(sample) for sample in measurement.samples],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _sample_values(sample: MeasuredSample) -> dict[str, Any]:
    plain = {name: getattr(sample, name) for name in ("number", "pair_id", "subject_class", "prompt")}
    return {**plain, "scores": dict(sample.scores)}


def _read(output: OutputFolder, path: str) -> Measurement:
    try:
        values = json.loads(output.read(path))
        samples = tuple(MeasuredSample(**sample) for sample in values["samples"])
        return Measurement(**{name: values[name] for name in ("step", "num_pairs", LOSS, *SCORES)}, samples=samples)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{output.uri(path)} is no measurement ({describe_error(error)}); delete it, and the next one stands alone."
        ) from error
