"""What an adapter is measured by: a benchmark's images, their scores, the paper's tables. Needs no Prefect."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ezigen.config import ConfigurationError, ModelConfig
from flows.job import Job, Summary
from flows.parameters import CatalogParameters, EvaluationParameters
from flows.progress import RunProgress
from flows.stopping import drain_on_signals
from flows.terminal import out, print_table
from tasks.reports.wording import SHARES, format_decimal, plural, score_name
from tasks.storage import Locations, OutputFolder

if TYPE_CHECKING:
    from ezigen.config import SamplerConfig
    from tasks.catalog.progress import Progress
    from tasks.evaluation.paper import PaperTable
    from tasks.evaluation.plan import EncoderAdapter, EvaluationPlan, Part
    from tasks.evaluation.tables import MeasuredTable

BENCHMARK_FOLDER = "benchmark"

_MAX_TOLD = 4


@dataclass(frozen=True)
class EvaluationSummary(Summary):
    """What was measured of an adapter; without an evaluation what training measured last."""

    reference: str
    benchmark: str = ""
    tables: "tuple[MeasuredTable, ...]" = ()
    training_metrics: Mapping[str, float] | None = None
    num_made: int = 0
    """Images that this run was to make."""
    uri: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.stopped_by is not None

    def describe(self) -> str:
        """toys@v1, 16 images of mini-dreambench: product right 50 %, scene right 100 %, CLIP-T 0.78, CLIP-I 0.81."""
        if self.stopped:
            return f"{self.reference} is not measured; run again to continue"
        if not self.tables:
            from tasks.training.measurements import measure_name

            measured = (self.training_metrics or {}).items()
            known = ", ".join(f"{measure_name(name)} {format_decimal(value)}" for name, value in measured)
            return f"{self.reference}, as training measured it last: {known or 'nothing'}"
        rows = self.tables[0].rows
        own = {variant.title for variant in self.tables[0].table.variants if variant.is_own}
        means = next((row.means for row in reversed(rows) if row.title in own), {})
        said = ", ".join(f"{score_name(n)} {format_figure(n, means[n].mean)}" for n in list(means)[:_MAX_TOLD])
        images = plural(len(self.tables[0].rows) * self.tables[0].num_cases, "image")
        text = f"{self.reference}, {images} of {self.benchmark}: {said or 'none could be made'}"
        return text if self.num_made else f"nothing to do: {text}"

    def print_details(self) -> None:
        """The tables with their intervals, and where they are stored."""
        for measured in self.tables:
            print_measured(measured)
        if self.uri:
            out.print(f"evaluation: {escape(self.uri)}")


class EvaluationJob(Job):
    """The evaluation of one adapter, in a folder that the caller holds."""

    artifact_prefix = "evaluation"

    def __init__(self, parameters: EvaluationParameters, storage_options: Mapping[str, Any]) -> None:
        self._storage_options = storage_options
        self._locations = Locations(storage_options=storage_options)
        inputs = parameters.inputs
        super().__init__(OutputFolder(inputs.output_uri, self._locations), parameters.cluster, inputs.if_busy)
        self.parameters = parameters
        self.tables: tuple[MeasuredTable, ...] = ()
        self._reference = inputs.adapter
        self._training_metrics: Mapping[str, float] | None = None
        self._plan: EvaluationPlan | None = None
        self._num_made = 0

    @property
    def name(self) -> str:
        """What people call the run."""
        return self.parameters.inputs.adapter

    def make_plan(self) -> str:
        """Reads the benchmark and looks for what was made before; returns in words what is to do."""
        from tasks.adapters import Registry, is_reference

        inputs = self.parameters.inputs
        if is_reference(inputs.adapter):
            published = Registry(inputs.adapters_uri, self._locations).resolve(inputs.adapter)
            self._reference, self._training_metrics = published.reference, published.card.metrics
        if why := self._why_not():
            return f"{self._reference}: {why}, so the last measurement of training is shown"
        self._plan = plan = self._make_plan()
        self._num_made = max(self._num_made, plan.num_images)
        to_do = f"{plural(plan.num_images, 'image')} to make, {plan.num_cases - plan.num_images:,} made before"
        return f"{self._reference}, {' and '.join(map(_describe, plan.parts))}: {to_do}"

    def work(self, on_progress: Callable[[RunProgress], None]) -> None:
        """Makes and measures the images that are missing; see Job."""
        from tasks.evaluation.run import Hooks, run_evaluation

        if self._plan is None:
            return
        before, total = 0, self._plan.num_images
        left = {one.variant.title: one.plan.counts.to_do for one in self._plan.variants}
        left |= {one.title: len(one.cases) for one in self._plan.baselines}

        def tell(title: str, progress: "Progress") -> None:
            nonlocal before
            ended = total - sum(left.values()) + progress.finished
            eta_s = None if not progress.rate_per_s else (total - ended) / progress.rate_per_s
            on_progress(RunProgress("images", total, ended, ended=ended, rate_per_s=progress.rate_per_s, eta_s=eta_s))
            if progress.finished == progress.total:
                left[title] = 0

        with drain_on_signals(self.stop):
            hooks = Hooks(self.lease, tell, self.stop.event)
            self.tables = run_evaluation(self._plan, self.output, self.parameters.cluster, hooks)

    def read_sheet(self) -> bytes | None:
        """The images of the first table, a JPEG; None if there are none."""
        if not self.tables or self._plan is None:
            return None
        try:
            return self.output.read(f"{self._plan.method.name}/sheets/{self.tables[0].table.name}.jpg")
        except FileNotFoundError:
            return None

    def summarize(self) -> EvaluationSummary:
        """The end of the run, after `work`."""
        from tasks.evaluation.run import PAGE_FILE

        plan = self._plan
        return EvaluationSummary(
            reference=self._reference,
            benchmark="" if plan is None else plan.parts[0].benchmark.name,
            tables=self.tables,
            training_metrics=self._training_metrics,
            num_made=self._num_made,
            uri=self.output.uri(f"{plan.method.name}/{PAGE_FILE}") if plan is not None and self.tables else "",
            stopped_by=self.stop.signal_number if plan is not None and not self.tables else None,
        )

    def _make_plan(self) -> "EvaluationPlan":
        from flows.planning import read_image_size
        from tasks.evaluation import read_benchmarks
        from tasks.evaluation.baselines import plan_baselines
        from tasks.evaluation.external import read_external
        from tasks.evaluation.plan import Method, plan_evaluation
        from tasks.features.model_shape import ModelShape

        wanted, inputs = self.parameters, self.parameters.inputs
        config = wanted.evaluation.benchmark
        if not config.folder_uri:
            config = config.model_copy(update={"folder_uri": self.output.uri(BENCHMARK_FOLDER)})
        tables = _choose_tables(wanted)
        benchmarks = read_benchmarks(config, [table.kind for table in tables], self._locations)
        sampler = wanted.evaluation.sampler(wanted.model.model)
        model, model_fingerprint, adapter_fingerprint = self._pin(inputs.adapter, sampler)
        method = Method(
            folder_name(self._reference),
            model,
            sampler,
            model_fingerprint,
            adapter_fingerprint,
            read_image_size(model.model),
            ModelShape.of(model.model).cost.unet_flop,
            {name: self._pin_encoder(name, adapter, sampler) for name, adapter in inputs.encoders.items()},
            segmenter=wanted.evaluation.segmenter,
        )
        given = [read_external(name, uri, benchmarks, self._locations) for name, uri in inputs.images.items()]
        others = {
            benchmark.name: [methods[benchmark.name] for methods in given if benchmark.name in methods]
            for benchmark in benchmarks
        }
        baselines = {  # of several benchmarks those that are not of editing; of one, plan_baselines says why not
            benchmark.name: plan_baselines(wanted.evaluation.baselines, benchmark, self.output)
            for benchmark in benchmarks
            if benchmark.kind != "editing" or len(benchmarks) == 1
        }
        return plan_evaluation(
            method,
            self.output,
            benchmarks,
            tables,
            allowed_roots=[config.folder_uri],
            others=others,
            baselines=baselines,
        )

    def _pin(self, adapter: str, sampler: "SamplerConfig") -> "tuple[ModelConfig, str, str]":
        """The model with an adapter that later promotions do not change, and the fingerprints of both."""
        from ezigen.config import CatalogInputs, ClusterConfig
        from flows.planning import pin_adapter, read_fingerprints

        wanted, inputs = self.parameters, self.parameters.inputs
        model = ModelConfig(
            model=wanted.model.model,
            device=wanted.model.device,
            dtype=wanted.model.dtype,
            adapter=adapter,
            adapters_uri=inputs.adapters_uri,
            face_encoder=wanted.evaluation.face_encoder,
        )
        catalog = CatalogInputs(catalog_uri="-", output_uri=inputs.output_uri)
        named = pin_adapter(CatalogParameters(catalog, model, sampler, ClusterConfig()), self._storage_options)
        return named.model, *read_fingerprints(named, self._storage_options)

    def _pin_encoder(self, name: str, adapter: str, sampler: "SamplerConfig") -> "EncoderAdapter":
        """An adapter for the lines of a subject encoder. Raises ConfigurationError if it was trained with another."""
        from ezigen.adapters.card import read_card
        from tasks.adapters import local_adapter
        from tasks.evaluation.plan import EncoderAdapter

        model, _, fingerprint = self._pin(adapter, sampler)
        folder = local_adapter(model.adapter, model.model, model.adapters_uri, self._locations)
        known = "none" if folder is None else read_card(folder).subject_encoder
        if known != name.removesuffix("_adaptive"):
            raise ConfigurationError(
                f"inputs.encoders {name}: adapter {adapter} was trained with subject encoder {known}; give one of "
                f"training.subject_encoder={name.removesuffix('_adaptive')}"
            )
        return EncoderAdapter(model, fingerprint)

    def _why_not(self) -> str:
        """Why nothing can be measured, or ""."""
        wanted = self.parameters
        if wanted.evaluation.benchmark.is_miniature and wanted.model.model != "mini":
            return f"{wanted.model.model} was not trained on the world of {wanted.evaluation.benchmark.kind}"
        return ""


def check_early(parameters: EvaluationParameters) -> None:
    """Finds most mistakes within seconds, before a server or Ray is started: models, tables, the benchmark.

    Raises ConfigurationError. What needs keys in a Prefect block is looked at later, when there is a server.
    """
    from ezigen.baselines import find_baseline
    from ezigen.models import model_fingerprint
    from ezigen.models.location import find_sam
    from tasks.evaluation import read_benchmarks
    from tasks.evaluation.plan import check_suited
    from tasks.evaluation.scoring import SEGMENTER_OPTION

    model_fingerprint(parameters.model.model)
    tables = _choose_tables(parameters)
    for baseline in parameters.evaluation.baselines.values():
        find_baseline(baseline)
    if parameters.evaluation.segmenter:
        find_sam(parameters.evaluation.segmenter, option=SEGMENTER_OPTION)
    config = parameters.evaluation.benchmark
    if config.is_miniature or parameters.inputs.storage_block:
        return
    check_suited(tables, read_benchmarks(config, [table.kind for table in tables], Locations()))


def _choose_tables(parameters: EvaluationParameters) -> "tuple[PaperTable, ...]":
    from tasks.evaluation.paper import choose_tables

    wanted = parameters.evaluation
    return choose_tables(wanted.tables, wanted.benchmark.kind, parameters.inputs.encoders)


def _describe(part: "Part") -> str:
    """mini-dreambench (4 of 20 prompts)."""
    benchmark = part.benchmark
    return f"{benchmark.name} ({benchmark.subset})" if benchmark.subset else benchmark.name


def folder_name(reference: str) -> str:
    """A folder for what is evaluated: toys-v3 for toys@v3, the last part of a location."""
    name = reference.rstrip("/").rpartition("/")[2].replace("@", "-")
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", name).strip(".-")
    if not safe:
        raise ConfigurationError(f"inputs.adapter {reference!r} names no folder; give a published adapter or a folder")
    return safe


def format_figure(name: str, value: float) -> str:
    """A share as percent, a score as it is."""
    return f"{100 * value:.0f} %" if name in SHARES else format_decimal(value)


def print_measured(measured: "MeasuredTable") -> None:
    """A table in the terminal: means with their intervals beside what was published, then what it says."""
    from tasks.evaluation.printing import heading, measures_of, published_of, sentence, table_cells

    out.print(f"\n[bold]{escape(heading(measured))}[/]")
    shown = measures_of(measured)
    heads = ("", *map(score_name, shown), *(f"{score_name(name)}, published" for name in published_of(measured)))
    print_table(heads, [tuple(cells) for cells in table_cells(measured, shown)])
    for trend in measured.trends:
        out.print(f"- {escape(sentence(measured, trend))}")
