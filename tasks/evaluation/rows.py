"""An evaluation as rows: every variant with every case, its image and its scores, or why there are none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.catalog.results import ResultRow
from tasks.evaluation.benchmarks import BenchmarkCase
from tasks.evaluation.external import FoundImage
from tasks.evaluation.plan import EvaluationPlan, Part
from tasks.evaluation.scoring import Scored, ScoreJob, read_scores, score_key
from tasks.storage import OutputFolder, ResultsLedger, RunOutput

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("subject_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string()),
        pa.field("image_sha256", pa.string()),
        pa.field("num_loops", pa.int32()),
        pa.field("num_unet_calls", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("scores", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("error", pa.string(), nullable=False),
    ],
    metadata={"ezigen.schema": "evaluation/2"},
)


@dataclass(frozen=True)
class Row:
    """A case in a variant: its image, what making it cost if it was made here, and its scores."""

    benchmark: str
    variant: str
    case: BenchmarkCase
    image: FoundImage | None = None
    made: ResultRow | None = None
    scored: Scored = field(default_factory=lambda: Scored({}))
    missing: str = "not made"
    """Why another method has no image."""

    @property
    def seconds(self) -> float | None:
        """What the image took; None where that is not known."""
        if self.made is not None:
            return self.made.seconds
        return None if self.image is None else self.image.seconds


def look(part: Part, output: OutputFolder) -> Iterator[Row]:
    """Every variant and every other method with every case, and the image that is there; nothing of scores."""
    made = RunOutput(output.uri("made"), output.locations)
    name = part.benchmark.name
    wanted = {key for one in part.variants for key in one.keys.values()}
    stored = {row.item_key: row for row in ResultsLedger(made).rows() if row.item_key in wanted}
    for one in part.variants:
        for case in part.benchmark.cases:
            row = stored.get(one.keys.get(case.case_id, ""))
            image = None
            if row is not None and row.image_uri and row.image_sha256:
                image = FoundImage(made.uri(row.image_uri), row.image_sha256)
            yield Row(name, one.variant.name, case, image, row)
    for other in part.others:
        for case in part.benchmark.cases:
            missing = other.errors.get(case.case_id, "not made")
            yield Row(name, other.name, case, other.images.get(case.case_id), missing=missing)


def _key(part: Part, row: Row, image: FoundImage) -> str:
    return score_key(row.case, image.sha256, benchmark=part.benchmark.digest, encoders=part.encoders)


def read_rows(part: Part, output: OutputFolder) -> Iterator[Row]:
    """All of a part's rows with what was measured, or why nothing was. Raises as `read_scores`."""
    known = read_scores(output)
    for row in look(part, output):
        if row.image is not None:
            scored = known.get(_key(part, row, row.image), Scored({}, "not measured"))
        elif row.made is not None:
            scored = Scored({}, f"{row.made.error_code}: {row.made.error_message}")
        else:
            scored = Scored({}, row.missing)
        yield replace(row, scored=scored)


def unmeasured(plan: EvaluationPlan, output: OutputFolder) -> list[ScoreJob]:
    """The images that are there and were not measured, or could not be: what was in the way may have gone."""
    measured = {key for key, scored in read_scores(output).items() if not scored.error}
    return [
        ScoreJob(key, row.case, row.image.uri, row.image.sha256, judged=part.judges)
        for part in plan.parts
        for row in look(part, output)
        if row.image is not None and (key := _key(part, row, row.image)) not in measured
    ]


def all_scores(row: Row, unet_flop: float) -> dict[str, float]:
    """What was measured, and what the image cost."""
    cost = {} if row.seconds is None else {"seconds": row.seconds}
    if row.made is not None:
        num_calls = float(row.made.num_unet_calls)
        cost |= {"num_unet_calls": num_calls, "tflop": num_calls * unet_flop / 1e12}
        cost |= {} if row.made.num_loops is None else {"num_loops": float(row.made.num_loops)}
    return {**row.scored.scores, **cost}


def to_parquet(rows: Sequence[Row], output: OutputFolder) -> bytes:
    """The rows in IMAGES_SCHEMA."""
    table = pa.Table.from_pylist([_to_record(row, output) for row in rows], schema=IMAGES_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _to_record(row: Row, output: OutputFolder) -> dict[str, Any]:
    """Locations within the output are relative to it, so that it can be moved."""
    made = row.made
    return {
        "benchmark": row.benchmark,
        "variant": row.variant,
        "case_id": row.case.case_id,
        "subject_id": row.case.subject_id,
        "prompt_id": row.case.prompt_id,
        "image_uri": None if row.image is None else row.image.uri.removeprefix(f"{output.root_uri}/"),
        "image_sha256": None if row.image is None else row.image.sha256,
        "num_loops": None if made is None else made.num_loops,
        "num_unet_calls": None if made is None else made.num_unet_calls,
        "seconds": row.seconds,
        "scores": list(row.scored.scores.items()),
        "error": row.scored.error,
    }
