"""Another method as the one who makes the images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ezigen.baselines.location import IPAdapterFiles, find_baseline
from ezigen.config import BaselineConfig, ConfigurationError, ErrorCode, ItemError
from ezigen.images import Picture
from ezigen.models.faults import is_device_fault, is_out_of_memory
from ezigen.models.pipeline_folder import PipelineFolder
from ezigen.models.pipelines import call_options, heeds_negative, load_pipeline, trained_size_px
from ezigen.models.stack import no_progress_bars

logger = logging.getLogger(__name__)

_BATCH_SIZES = {"cpu": 1, "cuda": 8}
"""A CPU computes no faster with more."""


@dataclass(frozen=True, eq=False)
class BaselineRequest:
    """One image: its prompt, its seed, and the subject's pictures, at which a plain pipeline does not look."""

    prompt: str
    seed: int
    pictures: tuple[Picture, ...] = ()


class Baseline:
    """A pipeline of diffusers that makes images in batches. One thread at a time.

    An image depends on its request alone, whatever is in its batch (up to the rounding of larger products).
    """

    def __init__(
        self, pipeline: Any, options: dict[str, Any], *, size_px: int, negative_prompt: str, batch_size: int
    ) -> None:
        """options: arguments of every call of the pipeline; size_px: side of the square that it draws."""
        self._pipeline = pipeline
        self._options = options
        self._negative_prompt = negative_prompt
        self.size_px = size_px
        self.batch_size = batch_size
        """Images at a time; less after it was too much for the device's memory."""

    @property
    def looks_at_subjects(self) -> bool:
        """Whether it has an IP-Adapter."""
        unet = getattr(self._pipeline, "unet", None)
        return getattr(getattr(unet, "config", None), "encoder_hid_dim_type", None) == "ip_image_proj"

    @torch.no_grad()
    def make(self, requests: Sequence[BaselineRequest]) -> list[Image.Image | ItemError]:
        """An RGB image of size_px x size_px for every request, in order, or why there is none.

        It is what the pipeline makes with `torch.Generator().manual_seed(seed)`. Raises what a device that has failed
        raises: no further image can be made in this process.
        """
        made: dict[int, Image.Image | ItemError] = {}
        for indices in self._alike(requests):
            while waiting := [index for index in indices if index not in made]:
                batch = waiting[: self.batch_size]
                images = self._make_batch([requests[index] for index in batch])
                made.update(zip(batch, images, strict=True))
        return [made[index] for index in range(len(requests))]

    def _alike(self, requests: Sequence[BaselineRequest]) -> list[list[int]]:
        """Indices of requests that may share a batch: diffusers shows one subject to a whole batch."""
        groups: dict[tuple[Picture, ...], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.pictures if self.looks_at_subjects else (), []).append(index)
        return list(groups.values())

    def _make_batch(self, batch: Sequence[BaselineRequest]) -> Sequence[Image.Image | ItemError]:
        """Where a batch fails, its halves are tried: so the memory may suffice, and one request spoils no other."""
        try:
            return self._call(batch)
        except Exception as error:
            if is_device_fault(error):
                raise
            failure = _to_item_error(error)
            if len(batch) == 1:
                if failure.code is not ErrorCode.OUT_OF_MEMORY:
                    logger.exception("%r could not be made", batch[0].prompt)
                return [failure]
        # Not within the handler, where the error still holds what filled the memory.
        half = len(batch) // 2
        if failure.code is ErrorCode.OUT_OF_MEMORY:
            self.batch_size = half
        return [*self._make_batch(batch[:half]), *self._make_batch(batch[half:])]

    def _call(self, batch: Sequence[BaselineRequest]) -> list[Image.Image]:
        options = dict(self._options)
        if self._negative_prompt:
            options["negative_prompt"] = [self._negative_prompt] * len(batch)
        if self.looks_at_subjects:
            options["ip_adapter_image"] = [[picture.rgb for picture in batch[0].pictures]]
        output = self._pipeline(
            prompt=[request.prompt for request in batch],
            width=self.size_px,
            height=self.size_px,
            generator=[torch.Generator().manual_seed(request.seed) for request in batch],
            **options,
        )
        return [image.convert("RGB") for image in output.images]


def load_baseline(config: BaselineConfig, *, device: torch.device, dtype: torch.dtype, batch_size: int = 0) -> Baseline:
    """The pipeline, with its IP-Adapter if it has one, frozen, on the device; batch_size 0 fits the device.

    Only safetensors are read. Raises ConfigurationError, with a remedy, for a missing or unsuitable one.
    """
    files = find_baseline(config)
    pipeline = load_pipeline(files.pipeline, device=device, dtype=dtype)
    size_px = trained_size_px(pipeline)
    if size_px is None:
        raise ConfigurationError(f"{files.pipeline.label}: it does not say how large it draws; use another one")
    if config.negative_prompt and not heeds_negative(pipeline):
        raise ConfigurationError(
            f"{files.pipeline.label}: {type(pipeline).__name__} has no use for a negative_prompt; leave it empty"
        )
    if files.ip_adapter is not None:
        _show_subjects(pipeline, files.pipeline, files.ip_adapter)
        pipeline.set_ip_adapter_scale(config.ip_adapter_scale)
    if hasattr(pipeline.vae, "enable_slicing"):
        pipeline.vae.enable_slicing()  # a batch of large images is decoded one by one: most of the memory is there
    options = call_options(config.num_steps, config.guidance_scale, fast=files.pipeline.is_fast)
    return Baseline(
        pipeline,
        options,
        size_px=size_px,
        negative_prompt=config.negative_prompt,
        batch_size=batch_size or _BATCH_SIZES.get(device.type, 1),
    )


def _show_subjects(pipeline: Any, folder: PipelineFolder, files: IPAdapterFiles) -> None:
    """Loads an IP-Adapter into a pipeline, and the CLIP that looks for it."""
    from diffusers.utils import is_accelerate_available
    from transformers import CLIPVisionModelWithProjection

    if not hasattr(pipeline, "load_ip_adapter"):
        raise ConfigurationError(f"{files.label}: {type(pipeline).__name__} takes none; use Stable Diffusion 1.x or XL")
    try:
        with no_progress_bars():
            encoder: Any = CLIPVisionModelWithProjection.from_pretrained(
                files.encoder, local_files_only=True, use_safetensors=True, dtype=pipeline.dtype
            )
        pipeline.register_modules(image_encoder=encoder.requires_grad_(False).eval().to(pipeline.device))
        pipeline.load_ip_adapter(
            str(files.weights.parent),
            subfolder="",
            weight_name=files.weights.name,
            image_encoder_folder=None,  # it is there; by itself diffusers would take a pickle as well
            local_files_only=True,
            low_cpu_mem_usage=is_accelerate_available(),
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigurationError(f"{files.label}: it does not load into {folder.model}: {error}") from error


def _to_item_error(error: Exception) -> ItemError:
    if is_out_of_memory(error):
        return ItemError(ErrorCode.OUT_OF_MEMORY, "no memory for a single image; use a device with more of it")
    return ItemError(ErrorCode.GENERATION_FAILED, f"{type(error).__name__}: {error}")
