"""Which other model draws the scenes, and where in them the subject goes."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ezigen.config.base import Config

Region = Literal["all", "class", "sam"]


class SketchConfig(Config):
    """A text-to-image model whose pictures are the sketches (the paper's training-free integration)."""

    model: str = Field(
        default="",
        description="The text-to-image pipeline that draws the scenes: a folder in diffusers format or a hub id of any "
        'that diffusers knows (SD, SDXL, SD3, FLUX, ...), or "mini". Empty: the stack draws its own sketches.',
    )
    num_steps: int = Field(
        default=0, ge=0, le=1000, description="Its denoising steps; 0 is the pipeline's own number, 4 for fast models."
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0.0,
        le=50.0,
        description="Its guidance; none is the pipeline's own, 0 for fast models (turbo, lightning, schnell).",
    )
    draw_size_px: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Side of the square that it draws, as many pixels where a picture is not square; 0 is the size it "
        "was trained for.",
    )
    size_px: int = Field(
        default=0, ge=0, le=4096, description="Side of the images in the end; 0 is the size of the stack's images."
    )
    region: Region = Field(
        default="class",
        description="Where the subject goes. class: what the stack's UNet takes for the item's class word. sam: the "
        "object there that SAM outlines. all: the whole picture may change.",
    )
    sam_model: str = Field(
        default="", description="The SAM of region sam: a folder or a hub id, for example facebook/sam-vit-base."
    )
    grow: float = Field(
        default=0.03,
        ge=0.0,
        le=0.5,
        description="How far the region reaches beyond what was found, as a share of the picture's shorter side.",
    )

    @model_validator(mode="after")
    def _sam_is_there(self) -> Self:
        if self.region == "sam" and not self.sam_model:
            raise ValueError("region sam needs sam_model, for example facebook/sam-vit-base; or use region class")
        return self

    @property
    def draws(self) -> bool:
        """Whether another model draws at all."""
        return bool(self.model)
