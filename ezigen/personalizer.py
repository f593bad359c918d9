"""One object for notebooks and scripts: a subject in new scenes, in a picture that exists, or between two subjects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self, TypeAlias

import torch
from PIL import Image

from ezigen.config import ConfigurationError, ModelConfig, SamplerConfig
from ezigen.config.presets import PRESETS, SPEEDS
from ezigen.images import FORMATS, Picture, to_picture
from ezigen.models.pixels import to_image
from ezigen.models.stack import Stack, decode_latents
from ezigen.sampling import Edit, Generator, OnStep, Phase, Request, Sample, StepReport, load_generator

PictureLike: TypeAlias = Picture | Image.Image | bytes | str | Path
"""A path, a file's bytes, or a picture."""

Box: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Preview:
    """What an image will look like, as foreseen on the way. phase: text, invert or transfer; loop 0 is the first pass;
    steps count from 1 within a full pass.
    """

    key: str
    image: Image.Image
    phase: Phase
    loop: int
    step: int
    num_steps: int


OnPreview: TypeAlias = Callable[[Preview], None]
"""Called with previews; what it raises ends the work."""


class Personalizer:
    """Makes images of subjects with one set of networks. One thread at a time.

    Subjects are pictures: a path, bytes or a PIL image; several in a list are views of one subject. Transparent ones
    need no mask. Equal arguments give equal images. ItemError says what is wrong with a picture or a request.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._numbers = count()

    @classmethod
    def load(
        cls,
        model: str = "mini",
        *,
        adapter: str = "auto",
        sampler: SamplerConfig | str | None = None,
        speed: str = "balanced",
        device: str = "auto",
        dtype: str = "auto",
        image_encoder: str = "auto",
    ) -> Self:
        """The networks of "mini", a folder or a hub id.

        sampler: a configuration as it is, or the name of a preset (by default that of the model: embedded for mini,
        else paper), of which speed makes exact, balanced or draft. The others are those of ModelConfig. Raises
        ConfigurationError, with a remedy.
        """
        settings = {"model": model, "adapter": adapter, "device": device, "dtype": dtype}
        config = ModelConfig.model_validate({**settings, "image_encoder": image_encoder})
        return cls(load_generator(config, _choose_sampler(model, sampler, speed)))

    @property
    def sampler(self) -> SamplerConfig:
        """How images are made."""
        return self._generator.sampler

    @property
    def stack(self) -> Stack:
        """The frozen networks."""
        return self._generator.stack

    def generate(
        self,
        subject: PictureLike | Sequence[PictureLike],
        prompt: str,
        *,
        subject_class: str | Sequence[str] = "object",
        negative_prompt: str = "",
        seed: int = 0,
        on_preview: OnPreview | None = None,
        preview_every: int = 5,
    ) -> Sample:
        """The subject in the scene of the prompt.

        subject_class: what the subject is, in a word; a list with one for each picture where they show different
        subjects. on_preview is called every so many denoising steps.
        """
        return self.generate_all(
            [self.request(subject, prompt, subject_class=subject_class, negative_prompt=negative_prompt, seed=seed)],
            on_preview=on_preview,
            preview_every=preview_every,
        )[0]

    def edit(  # noqa: PLR0913
        self,
        source: PictureLike,
        subject: PictureLike | Sequence[PictureLike],
        prompt: str,
        *,
        mask: Image.Image | str | Path | None = None,
        box: Box | None = None,
        subject_class: str | Sequence[str] = "object",
        negative_prompt: str = "",
        seed: int = 0,
        on_preview: OnPreview | None = None,
        preview_every: int = 5,
    ) -> Sample:
        """The subject in a place of the source (paper 3.4); outside the feathered mask no pixel changes.

        mask: bright (or opaque) where the picture changes, as large as the source or of its proportions. box: (x0, y0,
        x1, y1) in pixels of the source, instead. With neither, the source is a sketch of the whole image.
        """
        if isinstance(mask, str | Path):
            with Image.open(mask, formats=FORMATS) as opened:
                mask = opened.copy()
        edit = Edit(to_picture(source), mask, box)
        request = self.request(
            subject, prompt, subject_class=subject_class, negative_prompt=negative_prompt, seed=seed, edit=edit
        )
        return self.generate_all([request], on_preview=on_preview, preview_every=preview_every)[0]

    def interpolate(
        self,
        first: PictureLike,
        second: PictureLike,
        prompt: str,
        *,
        num_images: int = 5,
        subject_classes: tuple[str, str] = ("object", "object"),
        negative_prompt: str = "",
        seed: int = 0,
    ) -> list[Sample]:
        """From one subject to another in num_images (at least 2) images of one scene, both ends included (paper,
        Fig. 17).
        """
        if num_images < 2:
            raise ConfigurationError(f"num_images is {num_images}; an interpolation has at least both ends: 2")
        shares = [n / (num_images - 1) for n in range(num_images)]
        requests = [
            self.request(
                [first, second],
                prompt,
                subject_class=subject_classes,
                negative_prompt=negative_prompt,
                seed=seed,
                mix=(1 - share, share),
            )
            for share in shares
        ]
        return self.generate_all(requests)

    def request(
        self,
        subject: PictureLike | Sequence[PictureLike],
        prompt: str,
        *,
        subject_class: str | Sequence[str] = "object",
        negative_prompt: str = "",
        seed: int = 0,
        mix: tuple[float, ...] = (),
        edit: Edit | None = None,
    ) -> Request:
        """One image to make, for `generate_all`."""
        several = isinstance(subject, Sequence) and not isinstance(subject, str | bytes)
        pictures: list[PictureLike] = list(subject) if several else [subject]  # type: ignore[arg-type, list-item]
        classes = (subject_class,) if isinstance(subject_class, str) else tuple(subject_class)
        return Request(
            key=f"image {next(self._numbers)}",
            prompt=prompt,
            subjects=tuple(to_picture(picture) for picture in pictures),
            subject_class=classes[0],
            negative_prompt=negative_prompt,
            seed=seed,
            subject_classes=classes if len(classes) > 1 else (),
            mix=mix,
            edit=edit,
        )

    def generate_all(
        self, requests: Sequence[Request], *, on_preview: OnPreview | None = None, preview_every: int = 5
    ) -> list[Sample]:
        """One sample per request, in their order, denoised together."""
        return self._generator.generate(requests, self._previewer(on_preview, preview_every))

    def _previewer(self, on_preview: OnPreview | None, every: int) -> OnStep | None:
        if on_preview is None:
            return None

        def show(report: StepReport) -> None:
            if report.step % every:
                return
            pixels = decode_latents(self.stack, report.x0).clamp(-1, 1)
            for key, image in zip(report.keys, torch.nan_to_num(pixels), strict=True):
                on_preview(Preview(key, to_image(image), report.phase, report.loop, report.step, report.num_steps))

        return show


def _choose_sampler(model: str, sampler: SamplerConfig | str | None, speed: str) -> SamplerConfig:
    if isinstance(sampler, SamplerConfig):
        return sampler
    name = sampler or ("embedded" if model == "mini" else "paper")
    for kind, value, allowed in (("sampler", name, PRESETS), ("speed", speed, SPEEDS)):
        if value not in allowed:
            raise ConfigurationError(f"{kind} {value!r} is unknown; use one of {', '.join(allowed)}")
    return SPEEDS[speed](PRESETS[name]())
