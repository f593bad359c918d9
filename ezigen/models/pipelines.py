"""Text-to-image pipelines of diffusers, loaded from safetensors alone."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ezigen.config import ConfigurationError
from ezigen.models.pipeline_folder import PipelineFolder
from ezigen.models.stack import no_progress_bars

_FAST_STEPS = 4
_NEEDED = ("prompt", "height", "width", "generator")


def load_pipeline(folder: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline on a device, frozen, without bars. Raises ConfigurationError for one that does not fit together, and
    for one that takes no prompt, size or generator.
    """
    from diffusers import AutoPipelineForText2Image
    from diffusers.utils import is_accelerate_available

    try:
        with no_progress_bars(), _no_component_bar():
            pipeline: Any = AutoPipelineForText2Image.from_pretrained(
                folder.path,
                dtype=dtype,
                variant=folder.variant,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=is_accelerate_available(),
                **dict.fromkeys(folder.without),
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        # The libraries report a configuration that does not fit its weights in all of these ways.
        raise ConfigurationError(f"{folder.label}: {folder.path} does not load: {error}") from error
    lacking = [name for name in _NEEDED if name not in inspect.signature(pipeline.__call__).parameters]
    if lacking:
        raise ConfigurationError(
            f"{folder.label}: {type(pipeline).__name__} takes no {', '.join(lacking)}; use another one"
        )
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipeline.to(device)
    return pipeline


def call_options(num_steps: int, guidance_scale: float | None, *, fast: bool) -> dict[str, Any]:
    """Arguments of a pipeline's call for steps and guidance; nothing where its own default holds: 0 steps, None."""
    options: dict[str, Any] = {}
    if num_steps := num_steps or (_FAST_STEPS if fast else 0):
        options["num_inference_steps"] = num_steps
    guidance_scale = 0.0 if fast and guidance_scale is None else guidance_scale
    if guidance_scale is not None:
        options["guidance_scale"] = guidance_scale
    return options


def heeds_negative(pipeline: Any) -> bool:
    """Whether a negative prompt has an effect: FLUX and others look at it only with a second kind of guidance."""
    parameters = inspect.signature(pipeline.__call__).parameters
    return "negative_prompt" in parameters and "true_cfg_scale" not in parameters


def trained_size_px(pipeline: Any) -> int | None:
    """Side of the square that it draws: 512 for Stable Diffusion, 1024 for XL, 3 and FLUX; None if it does not say."""
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    side = getattr(pipeline, "default_sample_size", None) or getattr(getattr(network, "config", None), "sample_size", 0)
    return side * px_per_latent(pipeline) if isinstance(side, int) and side > 0 else None


def px_per_latent(pipeline: Any) -> int:
    """Pixels along a side per latent."""
    return int(getattr(pipeline, "vae_scale_factor", 8))


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
