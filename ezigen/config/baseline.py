"""Another method that is made and measured beside an adapter."""

from pydantic import Field

from ezigen.config.base import Config


class BaselineConfig(Config):
    """A text-to-image pipeline of diffusers, alone or with an IP-Adapter that shows it the subject."""

    pipeline: str = Field(
        min_length=1,
        description="The text-to-image pipeline: a folder in diffusers format or a hub id of any that diffusers knows "
        '(SD, SDXL, SD3, FLUX, ...), or "mini". It draws at the size it was trained for.',
    )
    ip_adapter: str = Field(
        default="",
        description="An IP-Adapter for Stable Diffusion 1.x or XL: a folder or hub id in the layout of "
        "h94/IP-Adapter, or one .safetensors file with the folder image_encoder beside it. Empty: text alone.",
    )
    ip_adapter_scale: float = Field(
        default=0.6,
        ge=0.0,
        le=2.0,
        description="How much the subject's picture weighs against the text. 0.6 is what IP-Adapter's authors take "
        "where there are both, 1 where there is a picture alone.",
    )
    num_steps: int = Field(
        default=0, ge=0, le=1000, description="Denoising steps; 0 is the pipeline's own number, 4 for fast models."
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0.0,
        le=50.0,
        description="Guidance by the text; none is the pipeline's own, 0 for fast models (turbo, lightning, schnell).",
    )
    negative_prompt: str = Field(default="", max_length=2000, description="What the images shall not show.")
