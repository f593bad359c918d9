"""The options of `ezigen evaluate`, and the parameters they stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from ezigen.config import ConfigurationError
from flows.option_sets import (
    INPUTS,
    Accelerator,
    Adapters,
    Address,
    Device,
    Model,
    StorageBlock,
    Wait,
    Workers,
)
from flows.parameters import EvaluationParameters, build_evaluation_parameters

BENCHMARK = "Benchmark"


@dataclass(frozen=True)
class EvaluationOptions:
    """What stands on the command line. None means "not given": then the configuration's own default holds."""

    adapter: Annotated[
        str, Argument(help='NAME@VERSION or NAME@ALIAS, a folder, or "auto": the adapter shipped with "mini".')
    ]
    output: Annotated[str, Argument(help="Folder or s3:// prefix of evaluations.")]
    tables: Annotated[
        str | None,
        Option(
            metavar="NAME,...",
            help="adapter, dreambench, editing, modes, t_sub, encoders, people, loops, or all: several with commas "
            "between them.",
            rich_help_panel=BENCHMARK,
        ),
    ] = None
    benchmark: Annotated[
        str | None,
        Option(
            help="dreambench, dreamedit, people, own, or mini-dreambench, mini-dreamedit, mini-people; mini: for each "
            "table the one of these that it needs.",
            rich_help_panel=BENCHMARK,
        ),
    ] = None
    folder: Annotated[
        str | None, Option(help="Folder or s3:// prefix that holds the benchmark.", rich_help_panel=BENCHMARK)
    ] = None
    prompts: Annotated[
        str | None, Option(metavar="FILE", help="Of people and own: a prompt per line.", rich_help_panel=BENCHMARK)
    ] = None
    encoder: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=ADAPTER",
            help="An adapter that was trained with another subject encoder (trained, trained_adaptive, dino, clip), "
            "for tables t_sub and encoders; repeat it.",
            rich_help_panel=BENCHMARK,
        ),
    ] = None
    images: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=LOCATION",
            help="Another method's images of the same cases, measured beside; repeat it.",
            rich_help_panel=BENCHMARK,
        ),
    ] = None
    baseline: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=PIPELINE[,IP_ADAPTER]",
            help="Another method, made from its weights and measured beside: a text-to-image pipeline of diffusers, "
            "alone or with an IP-Adapter; repeat it.",
            rich_help_panel=BENCHMARK,
        ),
    ] = None
    runs: Annotated[int | None, Option(help="Images of each subject and prompt.", rich_help_panel=BENCHMARK)] = None
    num_subjects: Annotated[
        int | None, Option(help="The first so many subjects alone; 0: all.", rich_help_panel=BENCHMARK)
    ] = None
    num_prompts: Annotated[
        int | None, Option(help="The first so many prompts or sources alone; 0: all.", rich_help_panel=BENCHMARK)
    ] = None
    preset: Annotated[
        str | None, Option(help="auto, embedded, paper or released: how images are made.", rich_help_panel=BENCHMARK)
    ] = None
    steps: Annotated[int | None, Option(help="Denoising steps.", rich_help_panel=BENCHMARK)] = None
    face_encoder: Annotated[
        str | None,
        Option(help="Measures faces as well: an ONNX file or a vision model.", rich_help_panel=BENCHMARK),
    ] = None
    segmenter: Annotated[
        str | None,
        Option(metavar="SAM", help="Outlines the subjects of edits: facebook/sam-vit-base.", rich_help_panel=BENCHMARK),
    ] = None
    model: Model = None
    adapters: Adapters = None
    device: Device = None
    address: Address = None
    workers: Workers = None
    accelerator: Accelerator = None
    wait: Wait = None
    storage_block: StorageBlock = None
    assignments: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="GROUP.FIELD=VALUE",
            help="Any other setting of inputs, model, evaluation or cluster; repeat it.",
            rich_help_panel=INPUTS,
        ),
    ] = None

    def parameters(self) -> EvaluationParameters:
        """The flow's parameters. Raises ConfigurationError or pydantic's ValidationError."""
        return build_evaluation_parameters(
            inputs={
                "adapter": self.adapter,
                "adapters_uri": self.adapters,
                "output_uri": self.output,
                "encoders": _named("--encoder", "NAME=ADAPTER", self.encoder or ()),
                "images": _named("--images", "NAME=LOCATION", self.images or ()),
                "if_busy": "wait" if self.wait else None,
                "storage_block": self.storage_block,
            },
            model={"model": self.model, "device": self.device},
            evaluation={
                "benchmark.kind": self.benchmark,
                "benchmark.folder_uri": self.folder,
                "benchmark.prompts_uri": self.prompts,
                "benchmark.num_runs": self.runs,
                "benchmark.num_subjects": self.num_subjects,
                "benchmark.num_prompts": self.num_prompts,
                "tables": self.tables and [name.strip() for name in self.tables.split(",")],
                "preset": self.preset,
                "num_steps": self.steps,
                "face_encoder": self.face_encoder,
                "segmenter": self.segmenter,
                "baselines": _baselines(self.baseline) if self.baseline else None,
            },
            cluster={"address": self.address, "num_workers": self.workers, "accelerator": self.accelerator},
            assignments=self.assignments or (),
        )


def _baselines(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """NAME=PIPELINE or NAME=PIPELINE,IP_ADAPTER as configurations by name. Raises ConfigurationError."""
    form = "NAME=PIPELINE or NAME=PIPELINE,IP_ADAPTER"
    configs = {}
    for name, files in _named("--baseline", form, texts).items():
        pipeline, comma, ip_adapter = (part.strip() for part in files.partition(","))
        if not pipeline or (comma and not ip_adapter):
            raise ConfigurationError(f"--baseline {name}={files!r}: write {form}")
        configs[name] = {"pipeline": pipeline, "ip_adapter": ip_adapter}
    return configs


def _named(option: str, form: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE as value by name. Raises ConfigurationError."""
    named = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value or name in named:
            raise ConfigurationError(f"{option} {text!r}: write {form}, each name once")
        named[name] = value
    return named
