"""An evaluation from a benchmark to tables: images of every variant by catalog runs, their scores, one row per image.

In the output folder: catalog-<digest>.jsonl (a benchmark's cases), made/ (an ordinary catalog output, shared by all
variants and adapters: what two of them have in common is made once), baselines/ (images of other methods, see
`tasks.evaluation.baselines`), scores/ (see `tasks.evaluation.scoring`), and for every evaluated adapter a folder with
images.parquet (a row per variant and case), tables/, sheets/, evaluation.md and evaluation.html. Running again makes
and measures what is missing.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ezigen.config import CatalogInputs, ClusterConfig, ConfigurationError, ModelConfig, SamplerConfig
from tasks.catalog.plan import CatalogPlan, plan_catalog
from tasks.catalog.progress import Progress
from tasks.catalog.results import ResultRow
from tasks.catalog.run import run_catalog
from tasks.cluster import Cluster, connect, plan_workers
from tasks.evaluation.baselines import BaselineWork, PlannedBaseline, read_baseline
from tasks.evaluation.benchmarks import Benchmark, BenchmarkCase, catalog_rows
from tasks.evaluation.comparison import FACTS_FILE, IMAGES_FILE
from tasks.evaluation.external import ExternalMethod, FoundImage
from tasks.evaluation.paper import PaperTable, Variant, beside, makeable
from tasks.evaluation.printing import to_csv, to_latex, to_markdown
from tasks.evaluation.scoring import Scored, ScoreJob, ScoreWork, encoders_digest, make_shards, read_scores, score_key
from tasks.evaluation.sheet import ShownCase, draw_table
from tasks.evaluation.showing import look_closer
from tasks.evaluation.tables import MeasuredTable, ScoredImage, measure_table
from tasks.inspection.sheet import to_jpeg
from tasks.reports.evaluation_page import EvaluationPage, MissingImage, PageTable, render_evaluation
from tasks.sharding import ShardMeter, ShardProgress, ShardReport, run_shards
from tasks.storage import Locations, OutputFolder, ResultsLedger, RunOutput
from tasks.storage.lease import Lease
from tasks.storage.run_record import now_text

logger = logging.getLogger(__name__)

PAGE_FILE = "evaluation.html"
MARKDOWN_FILE = "evaluation.md"
JUDGED = "mini-dreambench"
"""The benchmark whose truth is known."""

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
class Method:
    """What is evaluated: an adapter on a model.

    name: of its folder. sampler: what all variants have in common. The fingerprints tell the model and the adapter from
    others, see `ezigen.models` and `ezigen.adapters`; image_size_px is the side of the model's images.
    """

    name: str
    model: ModelConfig
    sampler: SamplerConfig
    model_fingerprint: str
    adapter_fingerprint: str
    image_size_px: int
    unet_flop: float
    """Floating-point operations of one UNet evaluation, as `ezigen.models.flop` counts them."""
    encoders: Mapping[str, "EncoderAdapter"] = field(default_factory=dict)
    """Adapters that were trained with another subject encoder, by `Variant.encoder`."""
    segmenter: str = ""
    """The SAM that outlines the subjects of edits; empty: their masks do."""

    def segmenter_for(self, benchmark: Benchmark) -> str:
        """It changes nothing of benchmarks without edits, so that their scores stay what they are."""
        return self.segmenter if benchmark.kind == "editing" else ""

    def adapted(self, variant: Variant) -> tuple[ModelConfig, str]:
        """The model with the adapter that a variant takes, and the adapter's fingerprint."""
        if not variant.encoder:
            return self.model, self.adapter_fingerprint
        other = self.encoders[variant.encoder]
        return other.model, other.fingerprint


@dataclass(frozen=True)
class EncoderAdapter:
    """An adapter that was trained with another subject encoder: the model that takes it, and its fingerprint."""

    model: ModelConfig
    fingerprint: str


@dataclass(frozen=True)
class PlannedVariant:
    """A variant, the run that makes its images, and the item_key of every case."""

    variant: Variant
    model: ModelConfig
    sampler: SamplerConfig
    inputs: CatalogInputs
    plan: CatalogPlan
    keys: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Part:
    """What is evaluated on one benchmark."""

    benchmark: Benchmark
    tables: tuple[PaperTable, ...]
    variants: tuple[PlannedVariant, ...]
    encoders: str
    """Digest of the encoders that measure."""
    others: tuple[ExternalMethod, ...] = ()
    """Other methods, each a line more in every table."""
    baselines: tuple[PlannedBaseline, ...] = ()
    """More of them, whose images are made by the run; see `_with_baselines`."""

    @property
    def judges(self) -> bool:
        """Whether the world's judge measures, too."""
        return self.benchmark.name == JUDGED

    @property
    def num_cases(self) -> int:
        """Images that are made of this part in all."""
        return (len(self.variants) + len(self.baselines)) * len(self.benchmark.cases)

    @property
    def num_images(self) -> int:
        """Images that are to be made."""
        return sum(one.plan.counts.to_do for one in self.variants) + sum(len(one.cases) for one in self.baselines)


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation would do."""

    method: Method
    parts: tuple[Part, ...]

    @property
    def num_cases(self) -> int:
        """Images that the evaluation has in all."""
        return sum(part.num_cases for part in self.parts)

    @property
    def num_images(self) -> int:
        """Images that are to be made."""
        return sum(part.num_images for part in self.parts)

    @property
    def variants(self) -> tuple[PlannedVariant, ...]:
        """Of all parts."""
        return tuple(one for part in self.parts for one in part.variants)

    @property
    def baselines(self) -> tuple[PlannedBaseline, ...]:
        """Of all parts."""
        return tuple(one for part in self.parts for one in part.baselines)


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


@dataclass(frozen=True)
class Hooks:
    """What a run calls on its way."""

    lease: Lease | None = None
    on_progress: Callable[[str, Progress], None] = lambda _title, _progress: None
    """Gets the title of the line whose images are being made, and how far it is."""
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises LeaseLost."""
        if self.lease is not None:
            self.lease.check()


def plan_evaluation(
    method: Method,
    output: OutputFolder,
    benchmarks: Sequence[Benchmark],
    tables: Sequence[PaperTable],
    *,
    allowed_roots: Sequence[str],
    others: Mapping[str, Sequence[ExternalMethod]] | None = None,
    baselines: Mapping[str, Sequence[PlannedBaseline]] | None = None,
) -> EvaluationPlan:
    """Decides what is to be made. Writes the benchmarks' cases as catalogs, and nothing else.

    benchmarks: one of every kind that the tables are of. allowed_roots: where their pictures lie. others, baselines: by
    the benchmark's name. Raises ConfigurationError for a table without a benchmark of its kind, for encoders that are
    not there, and for a name of two lines.
    """
    check_suited(tables, benchmarks)
    parts = []
    for benchmark in benchmarks:
        own = [makeable(table, method.encoders) for table in tables if table.kind == benchmark.kind]
        if own:
            lines = tuple((others or {}).get(benchmark.name, ()))
            to_make = tuple((baselines or {}).get(benchmark.name, ()))
            parts.append(_plan_part(method, output, benchmark, own, allowed_roots, lines, to_make))
    return EvaluationPlan(method, tuple(parts))


def _plan_part(
    method: Method,
    output: OutputFolder,
    benchmark: Benchmark,
    tables: Sequence[PaperTable],
    allowed_roots: Sequence[str],
    others: tuple[ExternalMethod, ...],
    baselines: tuple[PlannedBaseline, ...],
) -> Part:
    _check_names(tables, others, baselines)
    lines = [*(one.name for one in others), *(one.name for one in baselines)]
    chosen = tuple(beside(table, lines) for table in tables)
    inputs = CatalogInputs(
        catalog_uri=_write_catalog(output, benchmark),
        output_uri=output.uri("made"),
        allowed_roots=[*allowed_roots],
        retry_failed=True,
        max_failed_share=1.0,
        max_previews=0,
    )
    planned = []
    for variant in _variants(chosen):
        sampler = variant.sampler(method.sampler)
        model, fingerprint = method.adapted(variant)
        plan = plan_catalog(
            inputs,
            sampler,
            method.model_fingerprint,
            fingerprint,
            storage_options=output.locations.storage_options,
            image_size_px=method.image_size_px,
        )
        planned.append(PlannedVariant(variant, model, sampler, inputs, plan, dict(plan.keys())))
    encoders = encoders_digest(method.model, judges=benchmark.name == JUDGED, segmenter=method.segmenter_for(benchmark))
    return Part(benchmark, chosen, tuple(planned), encoders, others, baselines)


def run_evaluation(
    plan: EvaluationPlan, output: OutputFolder, cluster: ClusterConfig, hooks: Hooks | None = None
) -> tuple[MeasuredTable, ...]:
    """Makes and measures what is missing, then stores rows and tables; returns the tables.

    A case whose image cannot be made, or not be measured, is counted as missing in its line. Ray is started, or
    joined, only if there is something to do. Setting `hooks.stop` ends the run in order and returns no tables: what is
    made and measured is stored. Raises as `run_catalog` and `run_shards`.
    """
    hooks = hooks or Hooks()
    if plan.num_images or _unmeasured(_with_baselines(plan, output), output):
        with connect(cluster) as ray_cluster:
            for one in plan.variants:
                _make(one, cluster, ray_cluster, hooks)
            for part in plan.parts:
                for baseline in part.baselines:
                    _make_baseline(baseline, plan, output, cluster, ray_cluster, hooks)
            _measure(_with_baselines(plan, output), output, cluster, ray_cluster, hooks)
    if hooks.stop.is_set():
        return ()
    hooks.check()
    plan = _with_baselines(plan, output)
    rows = tuple(row for part in plan.parts for row in _rows(part, output))
    output.write(f"{plan.method.name}/{IMAGES_FILE}", _to_parquet(rows, output))
    tables = _write_tables(plan, rows, output)
    output.write(f"{plan.method.name}/{FACTS_FILE}", _facts(plan))
    return tables


def _write_tables(plan: EvaluationPlan, rows: Sequence[Row], output: OutputFolder) -> tuple[MeasuredTable, ...]:
    """Computes the tables from rows and stores each as Markdown, CSV and LaTeX, with a sheet of its images, all of them
    in one Markdown file, and the page.
    """
    pictures = _pictures(plan, output)
    shown: list[PageTable] = []
    closer = None
    for part in plan.parts:
        own = [row for row in rows if row.benchmark == part.benchmark.name]
        images = [
            ScoredImage(
                row.variant,
                row.case.case_id,
                row.case.subject_id,
                row.case.prompt_id,
                _all_scores(row, plan.method.unet_flop),
            )
            for row in own
            if row.scored.scores
        ]
        for table in part.tables:
            measured = measure_table(table, images, len(part.benchmark.cases))
            drawn = draw_table(measured, _shown(measured, own), pictures)
            shown.append(PageTable(measured, None if drawn is None else to_jpeg(drawn)))
        if closer is None:
            cases = {case.case_id: case for case in part.benchmark.cases}
            uris = {(row.variant, row.case.case_id): row.image.uri for row in own if row.image is not None}
            closer = look_closer(part.tables[0], images, cases, uris, pictures)
    for one in shown:
        _store_table(one, plan.method.name, output)
    tables = tuple(one.measured for one in shown)
    output.write(f"{plan.method.name}/{MARKDOWN_FILE}", "\n".join(map(to_markdown, tables)).encode())
    page = replace(_describe(plan, rows), tables=tuple(shown), closer=closer)
    output.write(f"{plan.method.name}/{PAGE_FILE}", render_evaluation(page).encode())
    return tables


def _store_table(shown: PageTable, name: str, output: OutputFolder) -> None:
    table = shown.measured.table.name
    for suffix, write in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex)):
        output.write(f"{name}/tables/{table}.{suffix}", write(shown.measured).encode())
    if shown.sheet is not None:
        output.write(f"{name}/sheets/{table}.jpg", shown.sheet)


def _describe(plan: EvaluationPlan, rows: Sequence[Row]) -> EvaluationPage:
    """The page without its tables."""
    titles = {variant.name: variant.title for part in plan.parts for table in part.tables for variant in table.variants}
    made_at = [row.made.finished_at for row in rows if row.made is not None and row.made.image_uri]
    return EvaluationPage(
        name=plan.method.name,
        model=plan.method.model.model,
        adapter_fingerprint=plan.method.adapter_fingerprint,
        benchmarks=tuple(part.benchmark for part in plan.parts),
        num_images=len(rows),
        tables=(),
        missing=tuple(
            MissingImage(titles[row.variant], row.case.case_id, row.scored.error)
            for row in rows
            if not row.scored.scores
        ),
        made=(min(made_at), max(made_at)) if made_at else None,
        own_scale=plan.method.model.model == "mini",
    )


def _shown(measured: MeasuredTable, rows: Sequence[Row]) -> list[ShownCase]:
    """The cases with an image of every line of a table, in order."""
    lines = [variant.name for variant in measured.table.variants]
    by_case: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.image is not None:
            by_case.setdefault(row.case.case_id, {})[row.variant] = row
    complete = [by_line for by_line in by_case.values() if set(lines) <= set(by_line)]
    return [
        ShownCase(
            by_line[lines[0]].case,
            tuple((row.image.uri, row.scored.scores) for row in (by_line[line] for line in lines) if row.image),
        )
        for by_line in complete
    ]


def _pictures(plan: EvaluationPlan, output: OutputFolder) -> Locations:
    """How the benchmark's pictures and all images are reached."""
    locations = plan.variants[0].plan.catalog.locations
    roots = (output.root_uri, *(other.root_uri for part in plan.parts for other in part.others))
    return replace(locations, allowed_roots=(*locations.allowed_roots, *roots))


# ---- the plan


def check_suited(tables: Sequence[PaperTable], benchmarks: Sequence[Benchmark]) -> None:
    """Raises ConfigurationError for a table without a benchmark of its kind."""
    for table in tables:
        if table.kind not in {benchmark.kind for benchmark in benchmarks}:
            known = " and ".join(f"{benchmark.name} is of {benchmark.kind}" for benchmark in benchmarks)
            raise ConfigurationError(
                f"table {table.name} is of {table.kind}, but benchmark {known}; choose another table or another "
                "benchmark"
            )


def _check_names(
    tables: Sequence[PaperTable], others: Sequence[ExternalMethod], baselines: Sequence[PlannedBaseline]
) -> None:
    """Raises ConfigurationError for a method that is called as another line: their images would be mixed up."""
    taken = {variant.name for table in tables for variant in table.variants}
    for option, name in (*(("images", one.name) for one in others), *(("baseline", one.name) for one in baselines)):
        if name in taken:
            raise ConfigurationError(f"{option} {name}: this is the name of another line; choose another name")
        taken.add(name)


def _variants(tables: Sequence[PaperTable]) -> list[Variant]:
    """Every variant once that the evaluated adapter can make."""
    own = (variant for table in tables for variant in table.variants if not variant.is_external)
    return list({variant.name: variant for variant in own}.values())


def _write_catalog(output: OutputFolder, benchmark: Benchmark) -> str:
    """The cases as a catalog, unless it is there; named by its content, because a plan must not change under a run."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in catalog_rows(benchmark)).encode()
    name = f"catalog-{hashlib.sha256(lines).hexdigest()[:16]}.jsonl"
    return output.uri(name) if name in output.list("") else output.write(name, lines)


def _with_baselines(plan: EvaluationPlan, output: OutputFolder) -> EvaluationPlan:
    """The plan with what its baselines have made by now as images of other methods."""
    return replace(plan, parts=tuple(_with_made(part, output) for part in plan.parts))


def _with_made(part: Part, output: OutputFolder) -> Part:
    made = (read_baseline(one, output) for one in part.baselines)
    return replace(part, others=(*part.others, *made), baselines=())


# ---- the work


def _make(one: PlannedVariant, cluster: ClusterConfig, connected: Cluster, hooks: Hooks) -> None:
    if hooks.stop.is_set() or not (one.plan.counts.to_do or one.plan.counts.refused):
        return
    logger.info("%s: %d images to make", one.variant.title, one.plan.counts.to_do)
    run_catalog(
        one.plan,
        RunOutput(one.inputs.output_uri, one.plan.catalog.locations),
        inputs=one.inputs,
        model=one.model,
        sampler=one.sampler,
        cluster=cluster,
        lease=hooks.lease,
        on_progress=lambda progress: hooks.on_progress(one.variant.title, progress),
        stop=hooks.stop,
        connected=connected,
    )


def _make_baseline(
    one: PlannedBaseline,
    plan: EvaluationPlan,
    output: OutputFolder,
    cluster: ClusterConfig,
    connected: Cluster,
    hooks: Hooks,
) -> None:
    if hooks.stop.is_set() or not one.cases:
        return
    logger.info("%s: %d images to make", one.name, len(one.cases))
    memory = one.worker_memory_bytes()
    workers = plan_workers(cluster, connected.nodes, memory)
    work = BaselineWork(
        one.folder(output),
        one.make_shards(),
        one.config,
        plan.method.model.model_copy(update={"device": workers.device}),
        _pictures(plan, output),
        num_threads=workers.num_threads,
    )
    meter = ShardMeter(
        "images", len(one.cases), len(work.shards), lambda found: hooks.on_progress(one.title, _to_progress(found))
    )
    run_shards(
        work,
        list(work.shards),
        cluster=cluster,
        on_report=meter.add,
        check=hooks.check,
        tick=meter.tick,
        stop=hooks.stop,
        worker_memory_bytes=memory,
        connected=connected,
    )
    meter.tick(0, 0, force=True)


def _to_progress(found: ShardProgress) -> Progress:
    return Progress(
        total=found.total,
        done=found.done,
        failed=found.refused,
        in_flight=found.in_flight,
        rate_per_s=found.rate_per_s,
        eta_s=found.eta_s,
        num_workers=found.num_workers,
    )


def _measure(
    plan: EvaluationPlan, output: OutputFolder, cluster: ClusterConfig, connected: Cluster, hooks: Hooks
) -> None:
    shards = make_shards(_unmeasured(plan, output))
    if not shards or hooks.stop.is_set():
        return
    workers = plan_workers(cluster, connected.nodes)
    work = ScoreWork(
        output,
        shards,
        plan.method.model.model_copy(update={"device": workers.device}),
        _pictures(plan, output),
        segmenter=plan.method.segmenter,
        num_threads=workers.num_threads,
    )

    def report(shard: ShardReport) -> None:
        logger.info("%d images measured by %s in %.1f s", shard.rows, shard.worker, shard.seconds)

    run_shards(
        work, list(shards), cluster=cluster, on_report=report, check=hooks.check, stop=hooks.stop, connected=connected
    )


def _unmeasured(plan: EvaluationPlan, output: OutputFolder) -> list[ScoreJob]:
    """The images that are there and were not measured, or could not be: what was in the way may have gone."""
    measured = {key for key, scored in read_scores(output).items() if not scored.error}
    return [
        ScoreJob(key, row.case, row.image.uri, row.image.sha256, judged=part.judges)
        for part in plan.parts
        for row in _look(part, output)
        if row.image is not None and (key := _key(part, row, row.image)) not in measured
    ]


def _look(part: Part, output: OutputFolder) -> Iterator[Row]:
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


# ---- the rows


def _rows(part: Part, output: OutputFolder) -> Iterator[Row]:
    known = read_scores(output)
    for row in _look(part, output):
        if row.image is not None:
            scored = known.get(_key(part, row, row.image), Scored({}, "not measured"))
        elif row.made is not None:
            scored = Scored({}, f"{row.made.error_code}: {row.made.error_message}")
        else:
            scored = Scored({}, row.missing)
        yield replace(row, scored=scored)


def _facts(plan: EvaluationPlan) -> bytes:
    """What two evaluations must have in common to be compared, and what tells this one from others."""
    method = plan.method
    facts = {
        "benchmarks": {
            part.benchmark.name: {
                "digest": part.benchmark.digest,
                "subset": part.benchmark.subset,
                "encoders": part.encoders,
            }
            for part in plan.parts
        },
        "model": method.model_fingerprint,
        "sampler": method.sampler.digest(),
        "adapter": method.adapter_fingerprint,
        "tables": [table.name for part in plan.parts for table in part.tables],
        "others": sorted(
            variant.name
            for part in plan.parts
            for variant in {one.name: one for table in part.tables for one in table.variants}.values()
            if not variant.is_own
        ),
        "made_at": now_text(),
    }
    return (json.dumps(facts, indent=1) + "\n").encode()


def _all_scores(row: Row, unet_flop: float) -> dict[str, float]:
    """What was measured, and what the image cost."""
    cost = {} if row.seconds is None else {"seconds": row.seconds}
    if row.made is not None:
        num_calls = float(row.made.num_unet_calls)
        cost |= {"num_unet_calls": num_calls, "tflop": num_calls * unet_flop / 1e12}
        cost |= {} if row.made.num_loops is None else {"num_loops": float(row.made.num_loops)}
    return {**row.scored.scores, **cost}


def _to_parquet(rows: Sequence[Row], output: OutputFolder) -> bytes:
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
