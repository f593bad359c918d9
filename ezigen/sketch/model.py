"""A text-to-image pipeline of diffusers as the one who draws."""

import logging
from typing import Any

import torch
from PIL import Image

from ezigen.config import ConfigurationError, ErrorCode, ItemError, SketchConfig
from ezigen.images import Picture
from ezigen.images.canvas import canvas_size
from ezigen.models.pipelines import call_options, heeds_negative, load_pipeline, px_per_latent, trained_size_px
from ezigen.sketch.location import find_pipeline

logger = logging.getLogger(__name__)


class SketchModel:
    """Draws one picture at a time: a picture depends on its text, seed and size alone, never on others."""

    def __init__(self, pipeline: Any, options: dict[str, Any], size_px: int) -> None:
        """options: arguments of every call of the pipeline; size_px: side of the square that it draws."""
        self._pipeline = pipeline
        self._options = options
        self.size_px = size_px
        self._takes_negative = heeds_negative(pipeline)
        self._has_warned = False

    @torch.no_grad()
    def draw(self, prompt: str, negative_prompt: str, seed: int, size: tuple[int, int]) -> Picture:
        """An RGB picture of this width and height in pixels.

        It is what the pipeline makes with `torch.Generator().manual_seed(seed)` at about its own number of pixels in
        these proportions, resized. Raises ItemError(GENERATION_FAILED) where its safety checker hides the picture.
        """
        options = dict(self._options)
        if negative_prompt and self._takes_negative:
            options["negative_prompt"] = negative_prompt
        elif negative_prompt and not self._has_warned:
            self._has_warned = True
            logger.warning("%s has no use for negative prompts", type(self._pipeline).__name__)
        unit = 2 * px_per_latent(self._pipeline)
        width, height = canvas_size(size, self.size_px, unit)
        generator = torch.Generator().manual_seed(seed)
        output = self._pipeline(prompt=prompt, width=width, height=height, generator=generator, **options)
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            message = f"the sketch model's safety checker hides what it drew for {prompt[:60]!r}; change prompt or seed"
            raise ItemError(ErrorCode.GENERATION_FAILED, message)
        image = output.images[0].convert("RGB")
        return Picture(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))


def load_sketch_model(config: SketchConfig, *, device: torch.device, dtype: torch.dtype) -> SketchModel:
    """The pipeline of a folder, of a hub id (looked for on this machine first), or of "mini", frozen, on the device.

    Only safetensors are read. Raises ConfigurationError, with a remedy, for a missing or unsuitable one.
    """
    folder = find_pipeline(config.model)
    pipeline = load_pipeline(folder, device=device, dtype=dtype)
    size_px = config.draw_size_px or trained_size_px(pipeline)
    if size_px is None:
        raise ConfigurationError(f"{folder.label}: it does not say how large it draws; set sketch.draw_size_px")
    options = call_options(config.num_steps, config.guidance_scale, fast=folder.is_fast)
    return SketchModel(pipeline, options, size_px)
