"""How an adapter is measured."""

from typing import Annotated, Literal

from pydantic import Field

from ezigen.config.base import Config
from ezigen.config.baseline import BaselineConfig
from ezigen.config.benchmark import BenchmarkConfig
from ezigen.config.presets import PRESETS
from ezigen.config.sampler import SamplerConfig

TableName = Literal["adapter", "dreambench", "editing", "modes", "t_sub", "encoders", "people", "loops", "all"]
EncoderName = Literal["trained", "trained_adaptive", "dino", "clip"]


class EvaluationConfig(Config):
    """What of an adapter is measured, and on what. A changed value makes and measures what is missing, and no more."""

    benchmark: BenchmarkConfig = Field(
        default=BenchmarkConfig(kind="mini-dreambench", num_subjects=4, num_prompts=4, num_runs=1),
        description="Subjects and what is asked of them.",
    )
    tables: tuple[TableName, ...] = Field(
        default=("adapter",),
        min_length=1,
        description="What is compared: adapter (one line: decoupled, without loops), or tables of the paper: "
        "dreambench (1 and 8), editing (2), modes (3), t_sub (4), encoders (5), people (6), loops (7); all: every one "
        "of the paper that the benchmark and the given adapters allow.",
    )
    preset: Literal["auto", "embedded", "paper", "released"] = Field(
        default="auto", description="How the images are made, but for what a table varies; auto fits the model."
    )
    num_steps: int = Field(default=0, ge=0, le=1000, description="Denoising steps; 0 takes the preset's.")
    face_encoder: str = Field(
        default="",
        description="Measures the identity of faces as well: a face network as ONNX file, or a vision model in "
        "transformers format. Empty: does not.",
    )
    segmenter: str = Field(
        default="",
        description="The SAM that outlines new subjects in edited images for DINO-sub: a folder or a hub id, for "
        "example facebook/sam-vit-base. Empty: the masks of the edits do.",
    )
    baselines: dict[str, BaselineConfig] = Field(
        default={},
        description="Other methods, by the name of their line, whose images are made of the same cases and measured "
        "beside: text-to-image pipelines, alone or with an IP-Adapter. Not on benchmarks of editing.",
    )
    margins: dict[str, Annotated[float, Field(ge=0.0)]] = Field(
        default={"dino": 0.02, "clip_t": 0.02},
        description="By how much measures may fall where a version takes the place of another: shown by the whole "
        "interval of the paired difference.",
    )

    def sampler(self, model: str) -> SamplerConfig:
        """What all variants have in common."""
        auto = "embedded" if model == "mini" else "paper"
        sampler = PRESETS[auto if self.preset == "auto" else self.preset]()
        changes = {"num_steps": self.num_steps} if self.num_steps else {}
        return SamplerConfig.model_validate({**dict(sampler), **changes})


class EvaluationInputs(Config):
    """Which adapter is measured, and where that is stored."""

    adapter: str = Field(
        min_length=1,
        description='NAME@VERSION or NAME@ALIAS of a published adapter, a folder, or "auto" (the one shipped with '
        '"mini").',
    )
    adapters_uri: str = Field(
        default="adapters", min_length=1, description="Folder or s3:// prefix of published adapters."
    )
    output_uri: str = Field(
        min_length=1,
        description="Folder or s3:// prefix of evaluations. Adapters that are evaluated in the same one can be "
        "compared, and share what does not depend on them.",
    )
    encoders: dict[EncoderName, str] = Field(
        default={},
        description="Adapters that were trained with another subject encoder than the frozen UNet, for tables t_sub "
        "and encoders: a published adapter or a folder for each.",
    )
    images: dict[str, str] = Field(
        default={},
        description="Other methods to measure beside the adapter, by name: a folder or s3:// prefix with "
        "<case>.png, or an output of personalize_catalog whose item_ids are the cases.",
    )
    if_busy: Literal["refuse", "wait"] = Field(
        default="refuse", description="What to do when another run holds the folder: refuse at once, or wait."
    )
    storage_block: str = Field(
        default="",
        description="Name of a Prefect block of type ezigen-s3 with the endpoint and keys of an S3 store; empty: "
        "the standard AWS variables.",
    )
