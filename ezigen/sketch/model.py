"""A text-to-image pipeline of diffusers as the one who draws."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from ezigen.config import ConfigurationError, ErrorCode, ItemError, SketchConfig
from ezigen.images import Picture
from ezigen.images.canvas import canvas_size
from ezigen.models.stack import no_progress_bars
from ezigen.sketch.location import find_pipeline, is_fast, variant_of

logger = logging.getLogger(__name__)

_FAST_STEPS = 4
_NEEDED = ("prompt", "height", "width", "generator")


class SketchModel:
    """Draws one picture at a time: a picture depends on its text, seed and size alone, never on others."""

    def __init__(self, pipeline: Any, options: dict[str, Any], size_px: int) -> None:
        """options: arguments of every call of the pipeline; size_px: side of the square that it draws."""
        self._pipeline = pipeline
        self._options = options
        self.size_px = size_px
        parameters = inspect.signature(pipeline.__call__).parameters
        # FLUX and others know a negative prompt, too, but look at it only with a second kind of guidance.
        self._takes_negative = "negative_prompt" in parameters and "true_cfg_scale" not in parameters
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
        unit = 2 * _px_per_latent(self._pipeline)
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
    from diffusers import AutoPipelineForText2Image
    from diffusers.utils import is_accelerate_available

    folder = find_pipeline(config.model)
    try:
        with no_progress_bars(), _no_component_bar():
            pipeline: Any = AutoPipelineForText2Image.from_pretrained(
                folder,
                dtype=dtype,
                variant=variant_of(config.model, folder),
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=is_accelerate_available(),
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        # The libraries report a configuration that does not fit its weights in all of these ways.
        raise ConfigurationError(f"sketch model {config.model}: {folder} does not load: {error}") from error
    lacking = [name for name in _NEEDED if name not in inspect.signature(pipeline.__call__).parameters]
    if lacking:
        raise ConfigurationError(
            f"sketch model {config.model}: {type(pipeline).__name__} takes no {', '.join(lacking)}; use another one"
        )
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipeline.to(device)
    size_px = config.draw_size_px or _trained_size_px(config.model, pipeline)
    return SketchModel(pipeline, _call_options(config, fast=is_fast(config.model, folder)), size_px)


@contextmanager
def _no_component_bar() -> Iterator[None]:
    """As `no_progress_bars`, of diffusers, which draws one over the parts of a pipeline."""
    from diffusers.utils import logging as diffusers_logging

    drawn = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            diffusers_logging.enable_progress_bar()


def _call_options(config: SketchConfig, *, fast: bool) -> dict[str, Any]:
    """Nothing where the pipeline's own default holds."""
    options: dict[str, Any] = {}
    if num_steps := config.num_steps or (_FAST_STEPS if fast else 0):
        options["num_inference_steps"] = num_steps
    guidance_scale = 0.0 if fast and config.guidance_scale is None else config.guidance_scale
    if guidance_scale is not None:
        options["guidance_scale"] = guidance_scale
    return options


def _trained_size_px(model: str, pipeline: Any) -> int:
    """512 for Stable Diffusion, 1024 for XL, 3 and FLUX."""
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    side = getattr(pipeline, "default_sample_size", None) or getattr(getattr(network, "config", None), "sample_size", 0)
    if not isinstance(side, int) or side < 1:
        raise ConfigurationError(f"sketch model {model}: it does not say how large it draws; set sketch.draw_size_px")
    return side * _px_per_latent(pipeline)


def _px_per_latent(pipeline: Any) -> int:
    return int(getattr(pipeline, "vae_scale_factor", 8))
