"""The slots of denoising lanes, as tensors that stay where they are."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ezigen.adapters.attach import AdapterSet, SubjectKV
from ezigen.config import SamplerConfig
from ezigen.diffusion import CLEAN, NoiseSource, ddim_step, ddpm_step, dpmpp_2m_step
from ezigen.engine.planner import Kind, Lane
from ezigen.engine.work import Guide, Passage
from ezigen.models.stack import Stack
from ezigen.models.text import TextCondition
from ezigen.models.unet import call_unet


class StepLane:
    """Denoising steps of up to num_slots samples at a time, each at its own timestep, loop and pass.

    Texts and subjects are copied into their slot when a sample enters; from then on a step copies latents alone. The
    UNet always sees every slot: what an empty one computes is thrown away, and a sample's bits depend on nobody else.
    """

    def __init__(
        self,
        stack: Stack,
        adapters: AdapterSet | None,
        sampler: SamplerConfig,
        noise: NoiseSource,
        *,
        lane: Lane,
        num_slots: int,
    ) -> None:
        self._stack = stack
        self._adapters = adapters
        self._sampler = sampler
        self._noise = noise
        self._guided = lane.guided
        self._guidance_scale = sampler.guidance_of(edits=lane.edits)
        self._solver = "dpmpp_2m" if lane.kind is Kind.INVERT else sampler.solver
        channels, *size = stack.latent_shape
        self._latent_shape = (channels, *(lane.latent_size or size))
        self.num_slots = num_slots
        self._unet: Callable[..., Any] = stack.unet
        self._idle = torch.zeros((1, *self._latent_shape), device=stack.device)
        self._text: TextCondition | None = None
        self._subject: SubjectKV | None = None

    def enter(self, slot: int, guide: Guide) -> None:
        """The sample in this slot is from now on guided by this."""
        if self._text is None:
            self._text = guide.positive.empty_slots(self.num_slots * (1 + self._guided))
        if self._guided:
            self._text.fill(slot, guide.negative)
        self._text.fill(slot + self.num_slots * self._guided, guide.positive)
        if guide.subject is not None:
            self.attend(slot, guide.subject)

    def attend(self, slot: int, subject: SubjectKV) -> None:
        """The sample in this slot attends from now on to this subject, of the shape of all the lane's."""
        self._subject = self._subject or _empty_slots(subject, self.num_slots)
        _copy(subject, self._subject, slot)

    @property
    def is_compiled(self) -> bool:
        """Whether the UNet is called through torch.compile."""
        return self._unet is not self._stack.unet

    def compile(self, backend: str | None) -> None:
        """From now on the UNet is called through torch.compile, made for this lane's shapes at the next call."""
        unet = self._stack.unet
        self._unet = unet if backend is None else torch.compile(unet, backend=backend, dynamic=False)

    @torch.no_grad()
    def call_idle(self) -> None:
        """The network call of a step, on latents of nobody. At least one sample has entered."""
        self._predict(self._idle.repeat(self.num_slots, 1, 1, 1), self._timesteps([1] * self.num_slots))

    @torch.no_grad()
    def step(self, passages: Sequence[Passage | None]) -> None:
        """One step of every passage, by slot. They change only when the whole step has succeeded."""
        latents = torch.cat([self._idle if passage is None else passage.latents for passage in passages])
        t = self._timesteps([1 if passage is None else passage.step.t for passage in passages])
        next_t = self._timesteps([CLEAN if passage is None else passage.step.next_t for passage in passages])
        output = self._predict(latents, t)
        x0 = self._stack.schedule.to_x0(output, latents, t)
        latents = self._solve(passages, output, x0, latents, t, next_t)
        reached = [
            None if passage is None else _reached(passage, latents, slot) for slot, passage in enumerate(passages)
        ]
        for slot, (passage, own) in enumerate(zip(passages, reached, strict=True)):
            if passage is not None and own is not None:
                if passage.trajectory is not None:
                    passage.trajectory[passage.step.next_t] = own
                passage.last_t = passage.step.t
                passage.latents, passage.x0 = own, x0[slot : slot + 1]
                passage.num_done += 1

    def _timesteps(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self._stack.device)

    def _predict(self, latents: Tensor, t: Tensor) -> Tensor:
        """The guided output of the UNet (S, c, h, w) in fp32."""
        inputs = latents.to(self._stack.dtype)
        if self._guided:
            inputs, t = torch.cat([inputs, inputs]), torch.cat([t, t])
        if self._subject is None or self._adapters is None:
            output = self._call_unet(inputs, t)
        else:
            with self._adapters.active(self._subject):
                output = self._call_unet(inputs, t)
        if not self._guided:
            return output
        negative, positive = output.chunk(2)
        return negative + self._guidance_scale * (positive - negative)

    def _call_unet(self, inputs: Tensor, t: Tensor) -> Tensor:
        assert self._text is not None
        return call_unet(self._unet, inputs, t, self._text, px_per_latent=self._stack.px_per_latent).float()

    def _solve(
        self,
        passages: Sequence[Passage | None],
        output: Tensor,
        x0: Tensor,
        latents: Tensor,
        t: Tensor,
        next_t: Tensor,
    ) -> Tensor:
        schedule = self._stack.schedule
        if self._solver == "ddim":
            return ddim_step(schedule, output, latents, t, next_t)
        if self._solver == "ddpm":
            return ddpm_step(schedule, output, latents, t, next_t, self._step_noise(passages))
        last_x0 = torch.cat([_last_x0(passage, self._idle) for passage in passages])
        last_t = self._timesteps([CLEAN if passage is None else passage.last_t for passage in passages])
        return dpmpp_2m_step(schedule, x0, latents, t, next_t, last_x0, last_t)

    def _step_noise(self, passages: Sequence[Passage | None]) -> Tensor:
        noises = [
            self._idle.cpu()[0]
            if passage is None
            else self._noise.noise(passage.seed, "step", passage.loop, passage.step.number, self._latent_shape)
            for passage in passages
        ]
        noise = torch.stack(noises)
        if self._stack.device.type == "cuda":
            return noise.pin_memory().to(self._stack.device, non_blocking=True)
        return noise


def _reached(passage: Passage, latents: Tensor, slot: int) -> Tensor:
    """A passage's own latents (1, c, h, w) after a step, of those of all slots."""
    own = latents[slot : slot + 1]
    if passage.background is not None:
        return passage.background.blend(own, passage.step.next_t)
    # What is kept must not keep the latents of all slots.
    return own if passage.trajectory is None else own.clone()


def _last_x0(passage: Passage | None, idle: Tensor) -> Tensor:
    return idle if passage is None or passage.x0 is None else passage.x0


def _empty_slots(like: SubjectKV, num_slots: int) -> SubjectKV:
    """Slots for subjects with as many tokens; nothing in them."""
    pairs = {
        name: (key.new_zeros((num_slots, *key.shape[1:])), value.new_zeros((num_slots, *value.shape[1:])))
        for name, (key, value) in like.pairs.items()
    }
    if like.mask is None:
        return SubjectKV(pairs)
    return SubjectKV(pairs, {name: mask.new_zeros((num_slots, *mask.shape[1:])) for name, mask in like.mask.items()})


def _copy(subject: SubjectKV, slots: SubjectKV, slot: int) -> None:
    for name, (key, value) in subject.pairs.items():
        slots.pairs[name][0][slot] = key[0]
        slots.pairs[name][1][slot] = value[0]
        if slots.mask is not None and subject.mask is not None:
            slots.mask[name][slot] = subject.mask[name][0]
