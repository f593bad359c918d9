"""Images of a benchmark measured on Ray: rows of scores as Parquet, each image once, however often it is asked about.

scores/<shard>.parquet is named by what it holds, and written whole: what is there is never measured again. A row's key
names the image's bytes, the case's pictures and words, and the encoders, so a changed one is measured anew.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ezigen.config import ConfigurationError, ErrorCode, ItemError, ModelConfig
from ezigen.images import Picture, decode_picture
from ezigen.models.fingerprint import fingerprint_files, sam_fingerprint
from tasks.catalog.rows import digest_hex, to_canonical
from tasks.evaluation.benchmarks import BenchmarkCase
from tasks.sharding.report import ShardReport, store_file
from tasks.storage import Locations, OutputFolder
from tasks.storage.filesystems import describe_error

if TYPE_CHECKING:
    from ezigen.metrics import Shown
    from ezigen.mini.recipe.judge import Bench
    from ezigen.models import Segmenter

T = TypeVar("T")

logger = logging.getLogger(__name__)

FOLDER = "scores"
MEASURES_VERSION = 1
"""Raised when a change of the code makes other scores of the same image."""

SEGMENTER_OPTION = "--segmenter"

IMAGES_PER_SHARD = 64
_IMAGES_AT_ONCE = 16

SCORES_SCHEMA = pa.schema(
    [
        pa.field("score_key", pa.string(), nullable=False),
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("image_sha256", pa.string(), nullable=False),
        pa.field("scores", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("error", pa.string(), nullable=False),
    ],
    metadata={"ezigen.schema": "scores/1"},
)


@dataclass(frozen=True)
class ScoreJob:
    """An image to be measured, and the case that it was made for."""

    key: str
    case: BenchmarkCase
    image_uri: str
    image_sha256: str
    judged: bool = False
    """Whether the world's judge looks as well: at images of the miniature DreamBench."""


@dataclass(frozen=True)
class Scored:
    """What was measured of an image; error says why nothing was, "" where something was."""

    scores: Mapping[str, float]
    error: str = ""


def score_key(case: BenchmarkCase, image_sha256: str, *, benchmark: str, encoders: str) -> str:
    """32 hex digits of everything that decides an image's scores.

    benchmark: its digest, which names its pictures by their bytes. encoders: `encoders_digest`.
    """
    return digest_hex(to_canonical(["ezigen-score", MEASURES_VERSION, benchmark, encoders, case.case_id, image_sha256]))


def make_shards(jobs: Iterable[ScoreJob]) -> dict[str, tuple[ScoreJob, ...]]:
    """Jobs by shard, equal keys once. A shard's name is the digest of its keys."""
    unique = {job.key: job for job in jobs}
    parts = _parts(sorted(unique.values(), key=lambda job: job.case.case_id), IMAGES_PER_SHARD)
    return {digest_hex(to_canonical([job.key for job in part])): tuple(part) for part in parts}


def read_scores(output: OutputFolder) -> dict[str, Scored]:
    """Everything that was measured into this output, by key. Raises ConfigurationError for a damaged file."""
    known: dict[str, Scored] = {}
    for name in output.list(FOLDER):
        if name.endswith(".parquet"):
            known |= _parse(output.read(f"{FOLDER}/{name}"), output.uri(f"{FOLDER}/{name}"))
    return known


@dataclass
class ScoreWork:
    """The ShardWork of scoring; see `tasks.sharding.ShardWork`."""

    output: OutputFolder
    shards: Mapping[str, tuple[ScoreJob, ...]] = field(repr=False)
    model: ModelConfig
    locations: Locations
    """How the benchmark's pictures and the images are reached."""
    num_threads: int = 1
    segmenter: str = ""
    """The SAM that outlines the subjects of edits; empty: the masks do."""

    def open(self) -> None:
        """Loads the encoders."""
        import torch

        from ezigen.metrics import Measurer, load_scorer

        torch.set_num_threads(self.num_threads)
        scorer = load_scorer(self.model)
        self._measurer: Measurer = Measurer(scorer.clip, scorer.dino, scorer.face)
        judges = any(job.judged for jobs in self.shards.values() for job in jobs)
        self._bench: Bench | None = _load_bench() if judges else None
        edits = any(job.case.source_uri for jobs in self.shards.values() for job in jobs)
        outlines = bool(self.segmenter) and edits
        self._segmenter: Segmenter | None = _load_segmenter(self.segmenter, self.model) if outlines else None

    def make(self, shard: str) -> ShardReport:
        """Measures the images of a shard and stores their rows."""
        jobs = self.shards[shard]
        rows = [row for part in _parts(jobs, _IMAGES_AT_ONCE) for row in self._measure(part)]
        data = _to_parquet(rows)
        refused = sum(bool(row["error"]) for row in rows)
        return ShardReport(
            shard,
            len(rows),
            refused={"not measured": refused} if refused else {},
            files=(store_file(self.output, f"{FOLDER}/{shard}.parquet", data, len(rows)),),
        )

    def _measure(self, jobs: Sequence[ScoreJob]) -> Iterator[dict[str, object]]:
        pictures: dict[str, Picture] = {}
        shown: list[Shown] = []
        errors: list[str] = []
        for job in jobs:
            try:
                shown.append(self._show(job, pictures))
                errors.append("")
            except ItemError as error:
                errors.append(f"{error.code.value}: {error.message}")
        found = iter(self._judge(jobs, errors, shown, self._measurer.measure(shown)))
        for job, reason in zip(jobs, errors, strict=True):
            if reason:
                logger.warning("case %s cannot be measured: %s", job.case.case_id, reason)
            yield {
                "score_key": job.key,
                "case_id": job.case.case_id,
                "image_sha256": job.image_sha256,
                "scores": {} if reason else next(found),
                "error": reason,
            }

    def _judge(
        self, jobs: Sequence[ScoreJob], errors: Sequence[str], shown: "Sequence[Shown]", found: list[dict[str, float]]
    ) -> list[dict[str, float]]:
        if self._bench is None:
            return found
        measured = [job for job, error in zip(jobs, errors, strict=True) if not error]
        return [scores | self._judged(job, one) for job, one, scores in zip(measured, shown, found, strict=True)]

    def _judged(self, job: ScoreJob, shown: "Shown") -> dict[str, float]:
        if self._bench is None or not job.judged:
            return {}
        from ezigen.mini.truth import Truth, judge_scores

        return judge_scores(self._bench, shown.image, Truth.of_benchmark(job.case.subject_id, job.case.prompt_id))

    def _show(self, job: ScoreJob, pictures: dict[str, Picture]) -> "Shown":
        from ezigen.metrics import Shown

        case = job.case
        image = self._read(job.image_uri, {}).rgb
        subjects = tuple(self._read(uri, pictures) for uri in case.reference_uris)
        if not case.source_uri:
            return Shown(image, case.prompt, subjects)
        source = self._read(case.source_uri, pictures).rgb
        if source.size != image.size:
            sizes = f"the image has {image.width} x {image.height} px, its source {source.width} x {source.height}"
            raise ItemError(ErrorCode.MASK_MISMATCH, f"{sizes}; an edit keeps its source's size")
        mask = self._read(case.mask_uri, pictures)
        grey = mask.mask or mask.rgb.convert("L")
        fitting = grey.resize(image.size, Image.Resampling.NEAREST)
        return Shown(image, case.prompt, subjects, source, fitting, self._outline(image, fitting))

    def _outline(self, image: Image.Image, mask: Image.Image) -> Image.Image | None:
        if self._segmenter is None:
            return None
        from ezigen.metrics.outlines import outline_subject

        return outline_subject(self._segmenter, image, mask)

    def _read(self, uri: str, known: dict[str, Picture]) -> Picture:
        if uri not in known:
            known[uri] = decode_picture(self.locations.read_bytes(uri))
        return known[uri]


def encoders_digest(model: ModelConfig, *, judges: bool = False, segmenter: str = "") -> str:
    """32 hex digits of the encoders that measure for this model: of their files, so that other weights are others.

    judges: the world's judge is one of them; segmenter: a SAM that is.

    Raises ConfigurationError, with a remedy, where one is missing: figures without it would be no comparison.
    """
    from ezigen.metrics import CLIP_MODEL, DINO_MODEL
    from ezigen.models.location import resolve_folder

    is_mini = model.model == "mini"
    named = [("mini" if is_mini else CLIP_MODEL, "clip"), ("mini" if is_mini else DINO_MODEL, "dinov2")]
    prints = [_folder_fingerprint(resolve_folder(*one)) for one in named]
    if model.face_encoder:
        path = Path(model.face_encoder).expanduser()
        prints.append(
            hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else _folder_fingerprint(resolve_folder(model.face_encoder, "dinov2"))
        )
    if judges:
        from ezigen.mini.truth import judge_file

        prints.append(hashlib.sha256(judge_file().read_bytes()).hexdigest())
    if segmenter:
        prints.append(sam_fingerprint(segmenter, option=SEGMENTER_OPTION))
    return digest_hex(to_canonical(prints))


def _load_segmenter(location: str, model: ModelConfig) -> "Segmenter":
    from ezigen.models import load_segmenter
    from ezigen.models.stack import choose_placement

    device, _ = choose_placement(model.device, "fp32")
    return load_segmenter(location, device=device, option=SEGMENTER_OPTION)


def _load_bench() -> "Bench":
    from ezigen.mini.recipe.judge import Bench
    from ezigen.mini.truth import judge_file

    return Bench(judge_file())


def _folder_fingerprint(folder: Path) -> str:
    return fingerprint_files(folder, (p for p in folder.iterdir() if p.suffix in {".json", ".safetensors"}))


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _to_parquet(rows: Sequence[Mapping[str, object]]) -> bytes:
    table = pa.Table.from_pylist(
        [{**row, "scores": list(dict(row["scores"]).items())} for row in rows],  # type: ignore[call-overload]
        schema=SCORES_SCHEMA,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _parse(data: bytes, where: str) -> dict[str, Scored]:
    try:
        table = pq.read_table(pa.BufferReader(data), schema=SCORES_SCHEMA)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise ConfigurationError(
            f"{where} is damaged ({describe_error(error)}); remove it, and its images are measured again."
        ) from error
    return {row["score_key"]: Scored(dict(row["scores"]), row["error"]) for row in table.to_pylist()}
