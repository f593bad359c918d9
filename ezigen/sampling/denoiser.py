"""Guided denoising of a batch along given steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from ezigen.adapters.attach import AdapterSet, SubjectKV
from ezigen.config import SamplerConfig
from ezigen.diffusion import CLEAN, NoiseSource, ddim_step, ddpm_step, dpmpp_2m_step
from ezigen.models.stack import Stack
from ezigen.models.text import TextCondition
from ezigen.models.unet import call_unet

SubjectAt: TypeAlias = Callable[[int], SubjectKV]
"""What the adapters attend to at a timestep, where that is not always the same."""


@dataclass(frozen=True)
class Step:
    """From timestep t to next_t; a negative next_t is the clean image. number counts from 1 within the whole pass."""

    number: int
    t: int
    next_t: int


@dataclass(frozen=True, eq=False)
class Conditions:
    """What guides each of B samples: prompt and negative prompt, and the seed of its noise."""

    positive: TextCondition
    negative: TextCondition
    seeds: tuple[int, ...]

    def select(self, rows: Sequence[int]) -> "Conditions":
        """These samples, in this order."""
        seeds = tuple(self.seeds[row] for row in rows)
        return Conditions(self.positive.select(rows), self.negative.select(rows), seeds)


@dataclass(frozen=True, eq=False)
class Denoised:
    """A batch after one step: latents at the step's next_t, and the clean x_0 predicted on the way (fp32)."""

    step: Step
    latents: Tensor
    x0: Tensor


def plan_steps(timesteps: Sequence[int]) -> tuple[Step, ...]:
    """The steps along timesteps from noise to image: 981 -> 961, ..., 21 -> 1, 1 -> clean."""
    return tuple(Step(number, t, next_t) for number, (t, next_t) in enumerate(pairwise([*timesteps, CLEAN]), start=1))


class Denoiser:
    """The UNet with classifier-free guidance and a solver. Networks run in the stack's precision, the rest in fp32."""

    def __init__(self, stack: Stack, adapters: AdapterSet | None, sampler: SamplerConfig, noise: NoiseSource) -> None:
        self._stack = stack
        self._adapters = adapters
        self._sampler = sampler
        self._solver = sampler.solver
        self._noise = noise

    def count_calls(self, steps: Sequence[Step], *, edits: bool = False) -> int:
        """UNet evaluations per sample along these steps: 2 for a step with guidance, 1 without."""
        return sum(2 if self._sampler.is_guided(step.t, edits=edits) else 1 for step in steps)

    def run(
        self,
        latents: Tensor,
        conditions: Conditions,
        steps: Sequence[Step],
        subject: SubjectKV | SubjectAt | None,
        loop: int = 0,
        *,
        blend: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Iterator[Denoised]:
        """Denoise latents (B, c, h, w) step by step, with the adapters attending to the subject, or idle without one.

        blend: for edits, what becomes of the latents at the timestep that they have just reached.
        A multistep solver starts afresh here: what came before, another phase or loop, drew another image.
        """
        both = TextCondition.cat([conditions.negative, conditions.positive])
        last_x0, last_t = None, CLEAN
        for step in steps:
            t = torch.full((len(latents),), step.t, device=latents.device)
            text = both if self._sampler.is_guided(step.t, edits=blend is not None) else conditions.positive
            scale = self._sampler.guidance_of(edits=blend is not None)
            attended = subject(step.t) if callable(subject) else subject
            output = self._predict(latents, t, text, attended, scale)
            x0 = self._stack.schedule.to_x0(output, latents, t)
            if self._solver == "dpmpp_2m":
                next_t, last = torch.full_like(t, step.next_t), torch.full_like(t, last_t)
                latents = dpmpp_2m_step(self._stack.schedule, x0, latents, t, next_t, last_x0, last)
            else:
                latents = self._first_order_step(output, latents, t, step, conditions.seeds, loop)
            if blend is not None:
                latents = blend(latents, step.next_t)
            last_x0, last_t = x0, step.t
            yield Denoised(step, latents, x0)

    def invert(self, latents: Tensor, text: TextCondition, steps: Sequence[Step]) -> Iterator[Denoised]:
        """Move the latents (B, c, h, w) of pictures towards noise (paper 3.4), step by step: second order, whatever the
        sampler's solver, without guidance, adapters idle, under the text embeddings (B, L, D).
        """
        last_x0, last_t = None, CLEAN
        for step in steps:
            t, next_t, last = (
                torch.full((len(latents),), n, device=latents.device) for n in (step.t, step.next_t, last_t)
            )
            x0 = self._stack.schedule.to_x0(self._predict(latents, t, text, None), latents, t)
            latents = dpmpp_2m_step(self._stack.schedule, x0, latents, t, next_t, last_x0, last)
            last_x0, last_t = x0, step.t
            yield Denoised(step, latents, x0)

    def _predict(
        self, latents: Tensor, t: Tensor, text: TextCondition, subject: SubjectKV | None, guidance_scale: float = 1.0
    ) -> Tensor:
        """The guided network output in fp32; the subject is the same in both guidance branches."""
        inputs = latents.to(self._stack.dtype)
        guided = len(text) > len(latents)
        if guided:
            inputs, t = torch.cat([inputs, inputs]), torch.cat([t, t])
        if subject is None or self._adapters is None:
            output = self._call_unet(inputs, t, text)
        else:
            with self._adapters.active(subject):
                output = self._call_unet(inputs, t, text)
        if not guided:
            return output
        negative, positive = output.chunk(2)
        return negative + guidance_scale * (positive - negative)

    def _call_unet(self, inputs: Tensor, t: Tensor, text: TextCondition) -> Tensor:
        return call_unet(self._stack.unet, inputs, t, text, px_per_latent=self._stack.px_per_latent).float()

    def _first_order_step(
        self, output: Tensor, latents: Tensor, t: Tensor, step: Step, seeds: Sequence[int], loop: int
    ) -> Tensor:
        next_t = torch.full_like(t, step.next_t)
        if self._solver == "ddim":
            return ddim_step(self._stack.schedule, output, latents, t, next_t)
        noise = self._noise.batch(seeds, "step", loop, step.number, latents.shape[1:]).to(latents.device)
        return ddpm_step(self._stack.schedule, output, latents, t, next_t, noise)
