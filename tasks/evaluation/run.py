"""An evaluation from a benchmark to tables: images of every variant by catalog runs, their scores, one row per image.

In the output folder: catalog-<digest>.jsonl (a benchmark's cases), made/ (an ordinary catalog output, shared by all
variants and adapters: what two of them have in common is made once), baselines/ (images of other methods, see
`tasks.evaluation.baselines`), scores/ (see `tasks.evaluation.scoring`), and for every evaluated adapter a folder with
images.parquet (a row per variant and case), tables/, sheets/, evaluation.md and evaluation.html. Running again makes
and measures what is missing.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ezigen.config import ClusterConfig
from tasks.catalog.progress import Progress
from tasks.catalog.run import run_catalog
from tasks.cluster import Cluster, connect, plan_workers
from tasks.evaluation.baselines import BaselineWork, PlannedBaseline
from tasks.evaluation.comparison import FACTS_FILE, IMAGES_FILE
from tasks.evaluation.plan import EvaluationPlan, PlannedVariant, with_baselines
from tasks.evaluation.printing import to_csv, to_latex, to_markdown
from tasks.evaluation.rows import Row, all_scores, read_rows, to_parquet, unmeasured
from tasks.evaluation.scoring import ScoreWork, make_shards
from tasks.evaluation.sheet import ShownCase, draw_table
from tasks.evaluation.showing import look_closer
from tasks.evaluation.tables import MeasuredTable, ScoredImage, measure_table
from tasks.inspection.sheet import to_jpeg
from tasks.reports.evaluation_page import EvaluationPage, MissingImage, PageTable, render_evaluation
from tasks.sharding import ShardMeter, ShardProgress, ShardReport, run_shards
from tasks.storage import Locations, OutputFolder, RunOutput
from tasks.storage.lease import Lease
from tasks.storage.run_record import now_text

logger = logging.getLogger(__name__)

PAGE_FILE = "evaluation.html"
MARKDOWN_FILE = "evaluation.md"


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


def run_evaluation(
    plan: EvaluationPlan, output: OutputFolder, cluster: ClusterConfig, hooks: Hooks | None = None
) -> tuple[MeasuredTable, ...]:
    """Makes and measures what is missing, then stores rows and tables; returns the tables.

    A case whose image cannot be made, or not be measured, is counted as missing in its line. Ray is started, or
    joined, only if there is something to do. Setting `hooks.stop` ends the run in order and returns no tables: what is
    made and measured is stored. Raises as `run_catalog` and `run_shards`.
    """
    hooks = hooks or Hooks()
    if plan.num_images or unmeasured(with_baselines(plan, output), output):
        with connect(cluster) as ray_cluster:
            for one in plan.variants:
                _make(one, cluster, ray_cluster, hooks)
            for part in plan.parts:
                for baseline in part.baselines:
                    _make_baseline(baseline, plan, output, cluster, ray_cluster, hooks)
            _measure(with_baselines(plan, output), output, cluster, ray_cluster, hooks)
    if hooks.stop.is_set():
        return ()
    hooks.check()
    plan = with_baselines(plan, output)
    rows = tuple(row for part in plan.parts for row in read_rows(part, output))
    output.write(f"{plan.method.name}/{IMAGES_FILE}", to_parquet(rows, output))
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
                all_scores(row, plan.method.unet_flop),
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
    shards = make_shards(unmeasured(plan, output))
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
