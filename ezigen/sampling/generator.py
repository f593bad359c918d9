"""EZIGen for a batch of requests: sketch or inversion, appearance transfer, loops, autostop (paper 3.2 to 3.4)."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from ezigen.adapters.attach import AdapterSet, SubjectKV
from ezigen.config import ErrorCode, ItemError, SamplerConfig
from ezigen.diffusion import CLEAN, NoiseSource
from ezigen.images.canvas import Canvas
from ezigen.models.exceptional import encode_exceptional
from ezigen.models.pixels import to_image, to_pixels
from ezigen.models.stack import Stack, decode_latents, encode_pictures, encode_prompts
from ezigen.models.text import TextCondition
from ezigen.sampling.autostop import StopEncoder, latent_similarity, patch_similarity, stop_reason
from ezigen.sampling.denoiser import Conditions, Denoised, Denoiser, Step, SubjectAt, plan_steps
from ezigen.sampling.editing import (
    Background,
    begin_trajectory,
    latent_size_of,
    make_background,
    plan_inversion,
    prepare_edit,
)
from ezigen.sampling.needs import check_networks
from ezigen.sampling.request import OnStep, Phase, Request, Sample, StepReport, StopReason
from ezigen.sampling.subjects import combine_subjects, encode_subject, prepare_subjects
from ezigen.subject import SubjectEncoder

MAX_TEXTS = 256
"""Prompts whose embeddings are kept from batch to batch."""


@dataclass(eq=False)
class _Work:
    """One request on its way to an image."""

    request: Request
    positive: TextCondition
    negative: TextCondition
    latents: Tensor
    subject: SubjectKV | None = None
    canvas: Canvas | None = None
    background: Background | None = None
    sketch: Image.Image | None = None
    image: Image.Image | None = None
    reference: Tensor | None = None
    loops: list[Image.Image] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    stop_reason: StopReason = "mode"
    num_loops: int = 0
    num_unet_calls: int = 0
    seconds: float = 0.0


class Generator:
    """Makes images with an attached stack; one call at a time.

    Only the denoising steps are batched; texts, subjects and images are encoded and decoded one by one, so that an
    item's image differs with its batch mates at most by the rounding of the UNet's batch size (about 1e-6).
    num_slots removes that, too: every UNet call is filled up to this many samples by repeating some, and an image's
    bits depend neither on mates nor on the number of requests (up to num_slots). Without it items that stop early
    leave the batch, which is up to a quarter faster.
    """

    def __init__(
        self,
        stack: Stack,
        adapters: AdapterSet | None,
        stop_encoder: StopEncoder | None,
        sampler: SamplerConfig,
        *,
        num_slots: int | None = None,
    ) -> None:
        """Raises ConfigurationError as `check_networks`."""
        check_networks(sampler, adapters, stop_encoder)
        self.stack = stack
        self.sampler = sampler
        self._adapters = adapters
        self._stop_encoder = stop_encoder
        self._num_slots = num_slots
        self._noise = NoiseSource()
        self._denoiser = Denoiser(stack, adapters, sampler, self._noise)
        self._subject_encoder = SubjectEncoder(stack, self._noise, adapters.subject_encoder if adapters else None)
        self._steps = plan_steps(stack.schedule.timesteps(sampler.num_steps))
        self._texts: dict[str | None, TextCondition] = {}

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], on_step: OnStep | None = None) -> list[Sample]:
        """One sample per request, in their order, denoised together.

        on_step is called after every denoising step and may raise to end the batch. Raises ItemError for a request
        without a subject picture in a mode that needs one, or without the face that it is to be cropped to, for an edit
        that cannot be made (see `prepare_edit`), and for an image that is not finite.
        """
        if self.sampler.mode != "text_only":
            requests = [prepare_subjects(request, self.sampler, self.stack.image_size_px) for request in requests]
        samples: dict[int, Sample] = {}
        for rows in self._groups(requests):
            made = self._generate_together([requests[row] for row in rows], on_step)
            samples.update(zip(rows, made, strict=True))
        return [samples[row] for row in range(len(requests))]

    def _groups(self, requests: Sequence[Request]) -> list[list[int]]:
        """Positions of the requests that share UNet calls: all of them, or, with num_slots, those of one size. Edits go
        by the size of their latents.

        Mates with more subject pictures lengthen an item's attention by masked tokens, which shifts its last bits.
        """
        groups: dict[object, list[int]] = {}
        for row, request in enumerate(requests):
            num_sets = _num_token_sets(request) if self._num_slots else 0
            groups.setdefault((num_sets, latent_size_of(request.edit, self.stack)), []).append(row)
        return list(groups.values())

    def _generate_together(self, requests: Sequence[Request], on_step: OnStep | None) -> list[Sample]:
        batch = [self._begin(request) for request in requests]
        split = self.sampler.num_sketch_steps
        if batch[0].canvas is not None:
            split = self.sampler.num_steps_before_edit
            self._invert(batch, self._steps[split:], on_step)
            self._transfer(batch, self._steps[split:], 0, on_step)
        elif self.sampler.mode == "text_only":
            self._draw_from_text(batch, self._steps, on_step)
        elif self.sampler.mode == "full_injection":
            self._transfer(batch, self._steps, 0, on_step)
        else:
            self._sketch(batch, self._steps[:split], on_step)
            self._transfer(batch, self._steps[split:], 0, on_step)
        if self.sampler.mode == "iterative":
            self._iterate(batch, self._steps[split:], on_step)
        return [_finish(work, self.sampler) for work in batch]

    def _begin(self, request: Request) -> _Work:
        """Texts, first noise and the subject's keys and values of one request."""
        started = time.perf_counter()
        canvas = prepare_edit(request, self.stack, self.sampler)
        if canvas is None:
            latents = self._noise.batch([request.seed], "initial", 0, 0, self.stack.latent_shape)
        else:
            latents = encode_pictures(self.stack, to_pixels(canvas.picture)[None])
        work = _Work(
            request=request,
            canvas=canvas,
            positive=self._text(request.prompt),
            negative=self._text(request.negative_prompt or self.sampler.negative_prompt or None),
            latents=latents.to(self.stack.device),
        )
        if self.sampler.mode != "text_only" and not self.sampler.is_adaptive:
            work.subject = self._encode_subject(request)
            work.num_unet_calls += len(request.subjects)
        work.seconds += time.perf_counter() - started
        return work

    def _text(self, prompt: str | None) -> TextCondition:
        if len(self._texts) >= MAX_TEXTS:
            self._texts.clear()
        if prompt not in self._texts:
            self._texts[prompt] = encode_prompts(self.stack, [prompt])
        return self._texts[prompt]

    def _encode_subject(self, request: Request, t: int = CLEAN) -> SubjectKV:
        """Features of all its pictures, joined along the tokens, as keys and values: once for the whole image, or for
        its steps at timestep t where t_sub is adaptive.
        """
        assert self._adapters is not None
        features = [
            encode_subject(
                self._subject_encoder,
                picture,
                name,
                self.stack.image_size_px,
                self.sampler,
                t=t,
                seed=request.seed,
                number=number,
            )
            for number, (picture, name) in enumerate(zip(request.subjects, request.classes, strict=True))
        ]
        return self._adapters.subject_kv(combine_subjects(features, request.mix))

    def _draw_from_text(self, batch: Sequence[_Work], steps: Sequence[Step], on_step: OnStep | None) -> None:
        """Mode text_only: every step with idle adapters."""
        self._denoise(batch, steps, 0, on_step, with_subject=False)
        self._count_calls(batch, steps)
        for work in batch:
            work.image = self._decode(work, work.latents)[1]

    def _sketch(self, batch: Sequence[_Work], steps: Sequence[Step], on_step: OnStep | None) -> None:
        """Stage 1: x_t at the split from text alone. It does not know the subject: equal texts and seeds share it."""
        firsts: dict[tuple[str, str, int], _Work] = {}
        for work in batch:
            firsts.setdefault(_sketch_key(work.request), work)
        x0 = self._denoise(list(firsts.values()), steps, 0, on_step, with_subject=False)
        foreseen = dict(zip(firsts, x0, strict=True)) if x0 is not None else {}
        self._count_calls(batch, steps)
        images = {key: self._decode(firsts[key], latent[None])[1] for key, latent in foreseen.items()}
        for work in batch:
            key = _sketch_key(work.request)
            work.latents, work.sketch = firsts[key].latents, images.get(key)

    def _invert(self, batch: Sequence[_Work], steps: Sequence[Step], on_step: OnStep | None) -> None:
        """In place of stage 1: from the source to x_t at the split, all of the way kept. Equal sources share it."""
        firsts: dict[str, _Work] = {}
        for work in batch:
            assert work.canvas is not None
            firsts.setdefault(work.canvas.source_hash(), work)
        works = list(firsts.values())
        trajectories = [begin_trajectory(work.latents, steps) for work in works]
        inversion = plan_inversion(steps)
        with _timed(works):
            rows = self._slot_rows(len(works))
            latents = torch.cat([work.latents for work in works])[rows]
            text = encode_exceptional(self.stack, self.sampler.edit.exceptional_token).select([0] * len(rows))
            for done in self._denoiser.invert(latents, text, inversion):
                for index, trajectory in enumerate(trajectories):
                    trajectory[done.step.next_t] = done.latents[index : index + 1].clone()
                _report(on_step, works, done, 0, len(self._steps), "invert")
        found = dict(zip(firsts, trajectories, strict=True))
        for work in batch:
            assert work.canvas is not None
            trajectory = found[work.canvas.source_hash()]
            work.background = make_background(work.canvas, trajectory, steps, self.sampler.edit)
            work.latents = trajectory[steps[0].t]
            work.num_unet_calls += len(inversion)

    def _transfer(self, batch: Sequence[_Work], steps: Sequence[Step], loop: int, on_step: OnStep | None) -> None:
        """Stage 2: the remaining steps with the subject; afterwards the latents are x_0 and the image is decoded."""
        self._denoise(batch, steps, loop, on_step, with_subject=True)
        self._count_calls(batch, steps)
        if self.sampler.is_adaptive:
            for work in batch:
                work.num_unet_calls += len(steps) * len(work.request.subjects)
        for work in batch:
            pixels, work.image = self._decode(work, work.latents)
            work.loops.append(work.image)
            with _timed([work]):
                self._compare_with_last(work, pixels)

    def _iterate(self, batch: Sequence[_Work], steps: Sequence[Step], on_step: OnStep | None) -> None:
        """Stages 3 and 4: noise x_0 to the split again and transfer again, until each image has settled."""
        first_t = steps[0].t
        noise_t = self.sampler.loops.renoise_from(first_t)
        active = [work for work in batch if not self._is_final(work)]
        while active:
            loop = active[0].num_loops + 1
            for work in active:
                noise = self._noise.batch([work.request.seed], "renoise", loop, 0, work.latents.shape[1:])
                t = torch.full((1,), noise_t, device=work.latents.device)
                if self.sampler.loops.through_pixels and work.image is not None:
                    work.latents = encode_pictures(self.stack, to_pixels(work.image)[None])
                work.latents = self.stack.schedule.add_noise(work.latents, noise.to(work.latents.device), t)
                if work.background is not None:
                    work.latents = work.background.blend(work.latents, first_t)
                work.num_loops = loop
            self._transfer(active, steps, loop, on_step)
            active = [work for work in active if not self._is_final(work)]

    def _is_final(self, work: _Work) -> bool:
        similarity = work.similarities[-1] if work.similarities else None
        reason = stop_reason(self.sampler.loops, work.num_loops, similarity)
        work.stop_reason = reason or work.stop_reason
        return reason is not None

    def _compare_with_last(self, work: _Work, pixels: Tensor) -> None:
        if self.sampler.mode != "iterative":
            return
        last = work.reference
        if self.sampler.loops.measure == "latent":
            work.reference = work.latents
            similarity = None if last is None else latent_similarity(work.latents, last)
        elif self._stop_encoder is not None:
            work.reference = self._stop_encoder.patch_tokens(pixels)
            similarity = None if last is None else patch_similarity(work.reference, last)
        else:
            return
        if similarity is not None:
            work.similarities.append(similarity.item())

    def _denoise(
        self, batch: Sequence[_Work], steps: Sequence[Step], loop: int, on_step: OnStep | None, *, with_subject: bool
    ) -> Tensor | None:
        """Move the batch's latents along the steps; returns the last predicted x_0 (B, c, h, w), None without steps."""
        with _timed(batch):
            rows = self._slot_rows(len(batch))
            conditions = Conditions(
                positive=TextCondition.cat([work.positive for work in batch]),
                negative=TextCondition.cat([self._negative(work, loop) for work in batch]),
                seeds=tuple(work.request.seed for work in batch),
            ).select(rows)
            subject = self._subjects_of(batch, rows) if with_subject else None
            latents = torch.cat([work.latents for work in batch])[rows]
            last: Denoised | None = None
            blend = _blend_of([batch[row] for row in rows])
            for last in self._denoiser.run(latents, conditions, steps, subject, loop, blend=blend):
                _report(on_step, batch, last, loop, len(self._steps), "transfer" if with_subject else "text")
            if last is None:
                return None
            for index, work in enumerate(batch):
                work.latents = last.latents[index : index + 1]
            return last.x0[: len(batch)]

    def _negative(self, work: _Work, loop: int) -> TextCondition:
        return work.negative if loop == 0 or self.sampler.loops.keeps_negative_prompt else self._text(None)

    def _subjects_of(self, batch: Sequence[_Work], rows: Sequence[int]) -> SubjectKV | SubjectAt:
        """What these rows of the batch attend to: always the same, or encoded at the timestep of each step."""
        if not self.sampler.is_adaptive:
            subjects = [work.subject for work in batch]
            return SubjectKV.stack([kv for kv in (subjects[row] for row in rows) if kv is not None])

        def encode(t: int) -> SubjectKV:
            subjects = [self._encode_subject(work.request, t) for work in batch]
            return SubjectKV.stack([subjects[row] for row in rows])

        return encode

    def _slot_rows(self, num_works: int) -> list[int]:
        """Who is in which row of a UNet call; see num_slots."""
        return [slot % num_works for slot in range(max(num_works, self._num_slots or 0))]

    def _count_calls(self, batch: Sequence[_Work], steps: Sequence[Step]) -> None:
        for work in batch:
            work.num_unet_calls += self._denoiser.count_calls(steps, edits=work.canvas is not None)

    def _decode(self, work: _Work, latents: Tensor) -> tuple[Tensor, Image.Image]:
        """Pixels (1, 3, H, W), clipped, and the 8-bit picture of one latent (1, c, h, w)."""
        with _timed([work]):
            pixels = decode_latents(self.stack, latents).clamp(-1, 1)
            if not torch.isfinite(pixels).all():
                message = f"{work.request.key}: the image is not finite; run the model with dtype bf16 or fp32"
                raise ItemError(ErrorCode.GENERATION_FAILED, message)
            return pixels, to_image(pixels[0])


def _num_token_sets(request: Request) -> int:
    """Pictures' worth of tokens that the adapters attend to."""
    return 1 if request.mix else len(request.subjects)


def _sketch_key(request: Request) -> tuple[str, str, int]:
    return request.prompt, request.negative_prompt, request.seed


def _blend_of(batch: Sequence[_Work]) -> Callable[[Tensor, int], Tensor] | None:
    """Each sample with its own background; None where nobody has one."""
    backgrounds = [work.background for work in batch if work.background is not None]
    if not backgrounds:
        return None

    def blend(latents: Tensor, t: int) -> Tensor:
        rows = zip(backgrounds, torch.split(latents, 1), strict=True)
        return torch.cat([background.blend(row, t) for background, row in rows])

    return blend


def _report(
    on_step: OnStep | None, batch: Sequence[_Work], done: Denoised, loop: int, num_steps: int, phase: Phase
) -> None:
    if on_step is None:
        return
    on_step(
        StepReport(
            keys=tuple(work.request.key for work in batch),
            phase=phase,
            loop=loop,
            step=done.step.number,
            num_steps=num_steps,
            x0=done.x0[: len(batch)],
        )
    )


def _finish(work: _Work, sampler: SamplerConfig) -> Sample:
    assert work.image is not None
    image = work.image
    if work.canvas is not None:
        image = work.canvas.paste(image, keeps_background=sampler.edit.keeps_background)
    return Sample(
        key=work.request.key,
        image=image,
        sketch=work.sketch if work.request.preview else None,
        loops=tuple(work.loops) if work.request.preview else (),
        num_loops=work.num_loops,
        stop_reason=work.stop_reason,
        similarities=tuple(work.similarities),
        num_unet_calls=work.num_unet_calls,
        seconds=work.seconds,
    )


@contextmanager
def _timed(batch: Sequence[_Work]) -> Iterator[None]:
    """Charge the time of the block to the items in it, in equal shares."""
    started = time.perf_counter()
    yield
    share = (time.perf_counter() - started) / len(batch)
    for work in batch:
        work.seconds += share
