"""Which networks make the images, and where they run."""

from typing import ClassVar, Literal

from pydantic import Field

from ezigen.config.base import Config
from ezigen.config.sketch import SketchConfig


class StackConfig(Config):
    """A frozen Stable Diffusion stack and the device it runs on."""

    model: str = Field(
        default="mini",
        min_length=1,
        description='The Stable Diffusion stack: "mini" (shipped with the package), a folder in diffusers '
        "format, or a hub id.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the networks run; auto takes a GPU if there is one."
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Precision of the networks; auto is fp32 on a CPU and bf16 on a GPU."
    )


class ModelConfig(StackConfig):
    """A Stable Diffusion stack, its adapter and the device they run on."""

    adapter: str = Field(
        default="auto",
        min_length=1,
        description='The subject adapter: "auto" (the one shipped with "mini"), NAME@ALIAS or NAME@VERSION of a '
        "published one, a folder or s3:// prefix with adapter.safetensors and card.json, "
        'the authors\' checkpoint folder, or "none" (only for mode text_only).',
    )
    adapters_uri: str = Field(
        default="adapters",
        min_length=1,
        description="Folder or s3:// prefix of published adapters, where NAME@ALIAS is looked up.",
    )
    image_encoder: str = Field(
        default="auto",
        min_length=1,
        description='The DINOv2 that decides when loops stop: "auto" (the shipped one for "mini", '
        "facebook/dinov2-base otherwise), a folder or a hub id. With loops.measure clip it is a CLIP, and auto means "
        "openai/clip-vit-base-patch32.",
    )
    face_encoder: str = Field(
        default="",
        description="Scores the identity of faces (docs/people.md): a face network as ONNX file, or a vision model in "
        "transformers format (a folder or a hub id). Empty: no such score.",
    )
    sketch: SketchConfig = Field(
        default_factory=SketchConfig,
        description="Another model that draws the scenes, into which the subject's appearance is then transferred.",
    )

    LATER: ClassVar[frozenset[str]] = frozenset({"face_encoder"})
