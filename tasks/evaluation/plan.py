"""What an evaluation would do: which images it makes, of which variants and baselines, on which benchmarks."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ezigen.config import CatalogInputs, ConfigurationError, ModelConfig, SamplerConfig
from tasks.catalog.plan import CatalogPlan, plan_catalog
from tasks.evaluation.baselines import PlannedBaseline, read_baseline
from tasks.evaluation.benchmarks import Benchmark, catalog_rows
from tasks.evaluation.external import ExternalMethod
from tasks.evaluation.paper import PaperTable, Variant, beside, makeable
from tasks.evaluation.scoring import encoders_digest
from tasks.storage import OutputFolder

JUDGED = "mini-dreambench"
"""The benchmark whose truth is known."""


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


def with_baselines(plan: EvaluationPlan, output: OutputFolder) -> EvaluationPlan:
    """The plan with what its baselines have made by now as images of other methods."""
    return replace(plan, parts=tuple(_with_made(part, output) for part in plan.parts))


def _with_made(part: Part, output: OutputFolder) -> Part:
    made = (read_baseline(one, output) for one in part.baselines)
    return replace(part, others=(*part.others, *made), baselines=())
