"""EZIGen as a pipeline of diffusers, for code that is written against those."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ezigen.adapters import AdapterCard, AdapterSet, detach_adapters, detached, read_card, resolve_adapter, save_adapter
from ezigen.adapters.card import WEIGHTS_FILE
from ezigen.config import ConfigurationError, LoopConfig, ModelConfig, SamplerConfig
from ezigen.config.presets import embedded, paper
from ezigen.diffusion import NoiseSchedule
from ezigen.images import to_picture
from ezigen.models.fingerprint import model_fingerprint
from ezigen.models.location import check_stack_folder, resolve_folder
from ezigen.models.pixels import to_image
from ezigen.models.stack import Stack, decode_latents, no_progress_bars, px_per_latent
from ezigen.personalizer import Box, Personalizer, PictureLike
from ezigen.sampling import Edit, Generator, OnStep, Request, Sample, StepReport
from ezigen.sampling.autostop import StopEncoder
from ezigen.sampling.load import attach_to_stack, load_stop_encoder

logger = logging.getLogger(__name__)

OnStepEnd: TypeAlias = Callable[[Any, int, int, dict[str, Tensor]], Any]
"""diffusers' callback_on_step_end: the pipeline, number of the step (from 0), timestep, and the tensors asked for."""

SOLVERS = {"DDIMScheduler": "ddim", "DDPMScheduler": "ddpm", "DPMSolverMultistepScheduler": "dpmpp_2m"}
"""The solver that a scheduler of diffusers stands for; any other one keeps the sampler's."""


@dataclass
class EZIGenPipelineOutput(BaseOutput):  # type: ignore[misc]
    """images: as output_type says. samples: how each was made, in their order; empty when it was interrupted."""

    images: list[Image.Image] | np.ndarray | Tensor
    samples: list[Sample]


class _Interrupted(Exception):  # noqa: N818
    """The callback has set `_interrupt`."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__("interrupted")
        self.x0 = x0


class EZIGenPipeline(DiffusionPipeline, StableDiffusionMixin):  # type: ignore[misc]
    """A Stable Diffusion pipeline that also takes a subject.

    `from_pretrained("mini")`, a folder or a hub id; `to`, `enable_*` and the schedulers work as elsewhere: exchanging
    `scheduler` for DDIM, DDPM or DPM-Solver++ multistep chooses the solver, any other scheduler gives its noise
    schedule alone. What makes the images is `ezigen.sampling`.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["text_encoder_2", "tokenizer_2"]  # noqa: RUF012  (diffusers reads it)

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        *,
        force_zeros_for_empty_prompt: bool = True,
    ) -> None:
        """force_zeros_for_empty_prompt: with Stable Diffusion XL embeddings of zeros stand for no text."""
        super().__init__()
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )
        self.adapters: AdapterSet | None = None
        self.adapter_card: AdapterCard | None = None
        self._stop_encoders: dict[str, StopEncoder] = {}
        self.default_sampler: SamplerConfig = paper()
        self._model = ModelConfig()
        self._base_fingerprint = ""
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "mini", *, adapter: str = "auto", image_encoder: str = "auto", **kwargs: Any
    ) -> Self:
        """The networks of "mini", of a folder or of a hub id that was downloaded, with a subject adapter.

        adapter: auto (the one in the folder's `adapter`, if there is one), a folder, the authors' checkpoint, or none.
        image_encoder: the DINOv2 that decides when loops stop, loaded when it is first needed. Other arguments, such
        as torch_dtype, are diffusers'. Raises ConfigurationError, with a remedy.
        """
        name = str(model)
        folder = resolve_folder(name)
        check_stack_folder(name, folder)
        with no_progress_bars():
            # What the folder's own pipeline has beyond this one, such as a safety checker, stays where it is.
            options = {"use_safetensors": True, "local_files_only": True, **kwargs}
            made: Self = super().from_pretrained(folder, **options)
        made._model = ModelConfig(model=name, image_encoder=image_encoder)
        made._base_fingerprint = model_fingerprint(name)
        made.default_sampler = embedded() if name == "mini" else paper()
        made._keep_vae_from_overflow()
        for network in made._networks:
            network.requires_grad_(False).eval()
        own = folder / "adapter"
        location = str(own) if adapter == "auto" and (own / WEIGHTS_FILE).is_file() else adapter
        if (found := resolve_adapter(location, name)) is not None:
            made.load_subject_adapter(found)
        return made

    def load_subject_adapter(self, folder: str | Path) -> None:
        """Puts another adapter into the UNet: a folder of ours, or the authors' checkpoint."""
        detach_adapters(self.unet)
        adapters = attach_to_stack(self._stack(), Path(folder))
        self.adapters = adapters.requires_grad_(False).eval()
        plain = (Path(folder) / WEIGHTS_FILE).is_file()
        self.adapter_card = read_card(Path(folder)) if plain else AdapterCard(extra_residual=True)
        self._place_adapters()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As DiffusionPipeline.to; the adapters go with the UNet, and a VAE that overflows in fp16 stays in fp32."""
        super().to(*args, **kwargs)
        self._keep_vae_from_overflow()
        self._place_adapters()
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """A folder for `from_pretrained`, the adapter in its `adapter`."""
        with detached(self.unet):
            super().save_pretrained(save_directory, **kwargs)
        if self.adapters is not None and self.adapter_card is not None:
            fingerprint = model_fingerprint(str(save_directory))
            signed = self.adapter_card.model_copy(update={"base_fingerprint": fingerprint})
            save_adapter(self.adapters, Path(save_directory) / "adapter", signed)

    @torch.no_grad()
    def __call__(  # noqa: PLR0913
        self,
        prompt: str | Sequence[str],
        subject_image: PictureLike | Sequence[PictureLike] | None = None,
        subject_class: str | Sequence[str] = "object",
        *,
        image: PictureLike | None = None,
        mask_image: Image.Image | None = None,
        mask_box: Box | None = None,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        split_ratio: float | None = None,
        num_loops: int | None = None,
        sampler: SamplerConfig | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("x0",),
    ) -> EZIGenPipelineOutput | tuple[Any]:
        """Images of the subject in the scene of each prompt, num_images_per_prompt each.

        subject_image: one picture, or several of the subject; without one, text alone draws the image. image with
        mask_image or mask_box is edited there (paper 3.4); without either it is a sketch. num_loops: so many loops;
        None: until the image has settled. sampler holds everything else, and what is given beside it counts more.
        generator: one, or one per image, from which the images' seeds are drawn; None is a fresh seed each.
        callback_on_step_end gets x0 (B, c, h, w), the clean latents foreseen, and may set `pipeline._interrupt`: the
        images are then what is foreseen. output_type: pil, np (B, H, W, 3) in 0..1, pt (B, 3, H, W) in 0..1.
        Raises ConfigurationError, and ItemError for a picture.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ConfigurationError(f"output_type {output_type!r} is unknown; use pil, np or pt")
        if unknown := set(callback_on_step_end_tensor_inputs) - {"x0"}:
            raise ConfigurationError(f"callback_on_step_end_tensor_inputs: only x0 is there, not {sorted(unknown)}")
        settings = self._sampler(sampler, num_inference_steps, guidance_scale, split_ratio, num_loops)
        if subject_image is None:
            settings = settings.model_copy(update={"mode": "text_only"})
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [text for text in prompts for _ in range(num_images_per_prompt)]
        maker = self._generator(settings)
        requests = self._requests(maker, prompts, subject_image, subject_class, negative_prompt, generator)
        if image is not None:
            edit = Edit(to_picture(image), mask_image, mask_box)
            requests = [replace(request, edit=edit) for request in requests]
        self._interrupt = False
        try:
            on_step = self._step_reporter(maker, callback_on_step_end)
            samples = maker.generate(requests, on_step)
            images = [sample.image for sample in samples]
        except _Interrupted as stopped:
            samples, images = [], [to_image(one) for one in decode_latents(maker.stack, stopped.x0).clamp(-1, 1)]
        self.maybe_free_model_hooks()
        shown = _as_output(images, output_type)
        return EZIGenPipelineOutput(images=shown, samples=samples) if return_dict else (shown,)

    # ---- inside

    @property
    def _networks(self) -> list[Any]:
        return [part for part in (self.unet, self.vae, self.text_encoder, self.text_encoder_2) if part is not None]

    def _keep_vae_from_overflow(self) -> None:
        if self.text_encoder_2 is not None and self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.to(torch.float32)

    def _place_adapters(self) -> None:
        if self.adapters is not None:
            self.adapters.to(self._execution_device, self.unet.dtype)

    def _stack(self) -> Stack:
        extra: dict[str, Any] = {}
        if self.text_encoder_2 is not None:
            zeros = self.config.force_zeros_for_empty_prompt
            extra = {"text_encoder_2": self.text_encoder_2, "tokenizer_2": self.tokenizer_2, "zeros_for_no_text": zeros}
        return Stack(
            unet=self.unet,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            schedule=NoiseSchedule.from_config(self.scheduler.config),
            image_size_px=int(self.unet.config.sample_size) * px_per_latent(self.vae),
            fingerprint=self._base_fingerprint,
            device=self._execution_device,
            dtype=self.unet.dtype,
            **extra,
        )

    def _sampler(
        self,
        sampler: SamplerConfig | None,
        num_steps: int | None,
        guidance_scale: float | None,
        split_ratio: float | None,
        num_loops: int | None,
    ) -> SamplerConfig:
        given = {"num_steps": num_steps, "guidance_scale": guidance_scale, "split_ratio": split_ratio}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        base = sampler or self.default_sampler
        if num_loops is not None:
            loops = {"stop": "fixed", "num_loops": num_loops}
            changes["loops"] = LoopConfig.model_validate({**base.loops.model_dump(), **loops})
        if sampler is None and (solver := SOLVERS.get(type(self.scheduler).__name__)):
            changes["solver"] = solver
        return SamplerConfig.model_validate({**base.model_dump(), **changes})

    def _generator(self, sampler: SamplerConfig) -> Generator:
        measure = sampler.loops.measure
        if sampler.stops_by_image and measure not in self._stop_encoders:
            self._stop_encoders[measure] = load_stop_encoder(self._model, sampler, self._execution_device.type)
        self._place_adapters()  # offloading has moved the place where networks run, without a call of `to`
        adapters = self.adapters if sampler.mode != "text_only" else None
        return Generator(self._stack(), adapters, self._stop_encoders.get(measure), sampler)

    def _requests(
        self,
        maker: Generator,
        prompts: Sequence[str],
        subject: PictureLike | Sequence[PictureLike] | None,
        subject_class: str | Sequence[str],
        negative_prompt: str,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> list[Request]:
        one = generator is None or isinstance(generator, torch.Generator)
        generators = [generator] * len(prompts) if one else list(generator)  # type: ignore[arg-type]
        if len(generators) != len(prompts):
            counts = f"{len(generators)} generators for {len(prompts)} images"
            raise ConfigurationError(f"{counts}; give one, or one for each")
        personalizer = Personalizer(maker)
        return [
            personalizer.request(
                () if subject is None else subject,
                text,
                subject_class=subject_class,
                negative_prompt=negative_prompt,
                seed=_draw_seed(source),  # type: ignore[arg-type]
            )
            for text, source in zip(prompts, generators, strict=True)
        ]

    def _step_reporter(self, maker: Generator, callback: OnStepEnd | None) -> OnStep:
        timesteps = self._stack().schedule.timesteps(maker.sampler.num_steps)
        steps = count()
        total = len(timesteps)

        def report(done: StepReport) -> None:
            if callback is not None:
                callback(self, next(steps), timesteps[min(done.step, total) - 1], {"x0": done.x0})
            if self._interrupt:
                raise _Interrupted(done.x0)

        return report


def _draw_seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(0, 2**62, (), generator=generator, device=device))


def _as_output(images: Sequence[Image.Image], output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    if output_type == "pil":
        return list(images)
    if len({image.size for image in images}) > 1:
        raise ConfigurationError(f"output_type {output_type}: the images have several sizes; use pil")
    pixels = np.stack([np.asarray(image, np.float32) / 255 for image in images])
    return pixels if output_type == "np" else torch.from_numpy(pixels).permute(0, 3, 1, 2)
