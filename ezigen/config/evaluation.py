"""How a finished adapter is measured."""

from typing import ClassVar, Literal

from pydantic import Field

from ezigen.config.base import Config
from ezigen.config.sampler import LoopConfig, SamplerConfig


class EvaluationConfig(Config):
    """Images of products that the embedded model never saw, each in four scenes; for other models nothing of it holds.

    A changed value is measured again.
    """

    num_products: int = Field(default=4, ge=0, le=12, description="Held-out products; 0 measures nothing.")
    num_seeds: int = Field(default=1, ge=1, le=64, description="Images of each product in each of its four scenes.")
    mode: Literal["full_injection", "decoupled", "iterative"] = Field(
        default="decoupled", description="How they are made; iterative costs several times more."
    )
    num_steps: int = Field(default=20, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(default=2.0, ge=1.0, le=50.0, description="Guidance; 1 switches it off.")
    split_ratio: float = Field(
        default=0.7, gt=0.0, le=1.0, description="Share of the steps with the subject, in mode decoupled and iterative."
    )

    face_encoder: str = Field(
        default="",
        description="Measures the identity of faces as well: a face network as ONNX file, or a vision model in "
        "transformers format. Empty: does not.",
    )

    LATER: ClassVar[frozenset[str]] = frozenset({"face_encoder"})

    def sampler(self) -> SamplerConfig:
        """How the images are made; loops, if any, are five, so that every image costs the same."""
        return SamplerConfig(
            mode=self.mode,
            num_steps=self.num_steps,
            split_ratio=self.split_ratio,
            guidance_scale=self.guidance_scale,
            loops=LoopConfig(stop="fixed", num_loops=5),
        )


class EvaluationInputs(Config):
    """Which adapter is measured, and where that is stored."""

    adapter: str = Field(min_length=1, description="A published adapter: NAME@VERSION or NAME@ALIAS.")
    adapters_uri: str = Field(
        default="adapters", min_length=1, description="Folder or s3:// prefix of published adapters."
    )
    output_uri: str = Field(
        min_length=1, description="Folder or s3:// prefix of evaluations: <name>-<version>.json and .jpg."
    )
    if_busy: Literal["refuse", "wait"] = Field(
        default="refuse", description="What to do when another run holds the folder: refuse at once, or wait."
    )
    storage_block: str = Field(
        default="",
        description="Name of a Prefect block of type ezigen-s3 with the endpoint and keys of an S3 store; empty: "
        "the standard AWS variables.",
    )
