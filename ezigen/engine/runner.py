"""Carries out what the planner decides, on the networks."""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from ezigen.adapters.attach import AdapterSet, SubjectKV
from ezigen.config import SamplerConfig
from ezigen.diffusion import CLEAN, NoiseSource
from ezigen.engine.cache import Cache
from ezigen.engine.counters import Counters
from ezigen.engine.lanes import StepLane
from ezigen.engine.planner import Lane
from ezigen.engine.work import Guide, Passage, SubjectJob
from ezigen.models.exceptional import encode_exceptional
from ezigen.models.faults import is_device_fault, is_out_of_memory
from ezigen.models.flop import FlopMeter
from ezigen.models.pixels import to_image, to_pixels
from ezigen.models.stack import Stack, decode_latents, encode_pictures, encode_prompts
from ezigen.models.text import TextCondition
from ezigen.sampling.autostop import StopEncoder
from ezigen.sampling.subjects import combine_subjects, encode_subject, keep_tokens
from ezigen.subject import LearnedEncoder, SubjectEncoder, SubjectFeatures
from ezigen.subject.foreground import drop_masked

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

MAX_COMPILED = 8
"""Shapes that the UNet is compiled for; later ones run as they are. PyTorch itself keeps no more of one function."""

MAX_LANES = 8
"""Denoising lanes whose slots stay allocated."""

_TOKEN_BUCKETS = 4
"""Foreground tokens are padded to a multiple of one n-th of a picture's tokens, so that there are few shapes."""


@dataclass(frozen=True, eq=False)
class Networks:
    """Everything that the engine computes with. adapters and stop_encoder where the sampler needs them."""

    stack: Stack
    adapters: AdapterSet | None = None
    stop_encoder: StopEncoder | None = None

    @property
    def subject_encoder(self) -> LearnedEncoder | None:
        """The adapters' own, if they have one."""
        return None if self.adapters is None else self.adapters.subject_encoder


@dataclass(frozen=True, eq=False)
class Decoded:
    """One decoded image: pixels as an 8-bit picture, None where they are not finite; its patch tokens (1, N, D); and
    the latents (1, c, h, w) of the picture.
    """

    image: Image.Image | None
    patches: Tensor | None = None
    latents: Tensor | None = None


class Runner:
    """One network call at a time. Raises what torch raises; nothing of a failed call is kept.

    Counts flop.PART of every call: what filled slots cost, not what was computed for empty ones.
    """

    def __init__(
        self,
        networks: Networks,
        sampler: SamplerConfig,
        noise: NoiseSource,
        counters: Counters,
        *,
        compiler: str | None = None,
        cached_subject_bytes: float = 0.0,
    ) -> None:
        """compiler: a backend of torch.compile for the UNet's denoising steps; None runs them as they are.
        cached_subject_bytes: bound of the keys and values at several timesteps, where t_sub is adaptive.
        """
        self._counters = counters
        self._compiler = compiler
        self._compiled: set[Hashable] = set()
        self._flop = FlopMeter()
        self._networks = networks
        self._stack = networks.stack
        self._sampler = sampler
        self._noise = noise
        self._subject_encoder = SubjectEncoder(networks.stack, noise, networks.subject_encoder)
        self._lanes: dict[Lane, StepLane] = {}
        self._exceptional: TextCondition | None = None
        self._at_timesteps: Cache[tuple[str, int], SubjectKV] = Cache(cached_subject_bytes)

    def encode_text(self, prompt: str | None) -> TextCondition:
        """One prompt as the UNet reads it; None as in `encode_prompts`."""
        return self._counted("text", (), lambda: encode_prompts(self._stack, [prompt]))

    @torch.no_grad()
    def encode_subject(self, job: SubjectJob, t: int = CLEAN) -> SubjectKV:
        """Keys and values of all its pictures, joined along the tokens and padded to one of few lengths; where t_sub is
        adaptive, those at timestep t.
        """
        return self._counted("encode", (len(job.pictures), job.num_to_encode), lambda: self._encode_subject(job, t))

    def _move(self, slots: StepLane, passages: Sequence[Passage | None]) -> None:
        """Brings subjects that depend on the timestep to that of the next step."""
        for slot, passage in enumerate(passages):
            if passage is None or (job := passage.guide.moving) is None:
                continue
            key = job.key, passage.step.t
            kv = self._at_timesteps.get(key)
            if kv is None:
                kv = self.encode_subject(job, passage.step.t)
                self._counters.add("unet_calls.encode", len(job.pictures))
                self._at_timesteps.put(key, kv, num_bytes(kv))
            slots.attend(slot, kv)

    @property
    def exceptional(self) -> TextCondition:
        """Text embeddings (1, L, D) under which sources are inverted."""
        if self._exceptional is None:
            self._exceptional = encode_exceptional(self._stack, self._sampler.edit.exceptional_token)
        return self._exceptional

    @torch.no_grad()
    def encode_source(self, picture: Image.Image) -> Tensor:
        """Latents (1, c, h, w) of a source picture."""
        call = lambda: encode_pictures(self._stack, to_pixels(picture)[None])  # noqa: E731
        return self._counted("encode", ("source", picture.size), call)

    def _encode_subject(self, job: SubjectJob, t: int) -> SubjectKV:
        assert self._networks.adapters is not None
        features = [self._features(job, index, t) for index in range(len(job.pictures))]
        joined = combine_subjects(features, job.mix)
        if joined.mask is not None:
            units = {name: -(-tokens.shape[1] // _TOKEN_BUCKETS) for name, tokens in features[0].tokens.items()}
            joined = drop_masked(joined, units)
        return self._networks.adapters.subject_kv(joined)

    def _features(self, job: SubjectJob, index: int, t: int) -> SubjectFeatures:
        picture, known = job.pictures[index], job.known(index)
        if known is None:
            size_px = self._stack.image_size_px
            return encode_subject(
                self._subject_encoder,
                picture,
                job.classes[index],
                size_px,
                self._sampler,
                t=t,
                seed=job.seed,
                number=index,
            )
        return keep_tokens(known.to(self._stack.device, self._stack.dtype), picture, self._sampler)

    # ---- denoising

    def enter(self, lane: Lane, num_slots: int, slot: int, guide: Guide) -> None:
        """From now on this slot of the lane is guided by this."""
        self._lane(lane, num_slots).enter(slot, guide)

    def denoise(self, lane: Lane, passages: Sequence[Passage | None]) -> None:
        """One step of every passage, by slot."""
        slots = self._lane(lane, len(passages))
        filled = sum(passage is not None for passage in passages) / len(passages)
        self._move(slots, passages)
        self._counted(lane.kind.name.lower(), (lane, len(passages)), lambda: slots.step(passages), filled)

    def compile_step(self, lane: Lane, num_slots: int) -> None:
        """Compiles the UNet for this lane, before its first step, if there is a compiler and room for another shape.

        The FLOP of a step are counted first: the counter does not see into compiled code. Samples must have entered.
        """
        slots = self._lane(lane, num_slots)
        if self._compiler is None or slots.is_compiled:
            return
        shapes = (lane, num_slots)
        if shapes not in self._compiled and len(self._compiled) == MAX_COMPILED:
            return
        started = perf_counter()
        try:
            with self._counters.timed("compile"):
                self._flop((lane.kind.name.lower(), shapes), slots.call_idle)
                slots.compile(self._compiler)
                slots.call_idle()
        except Exception as error:
            if is_device_fault(error) or is_out_of_memory(error):
                raise
            logger.warning("the UNet cannot be compiled and runs as it is", exc_info=True)
            self._compiler = None
            slots.compile(None)
            return
        if shapes not in self._compiled:
            self._compiled.add(shapes)
            self._counters.add("compiled_shapes")
            seconds = perf_counter() - started
            logger.info("compiled the UNet for %s with %d slots in %.1f s", lane.kind.name.lower(), num_slots, seconds)

    def _lane(self, lane: Lane, num_slots: int) -> StepLane:
        slots = self._lanes.pop(lane, None)
        if slots is None or slots.num_slots != num_slots:
            slots = StepLane(
                self._stack, self._networks.adapters, self._sampler, self._noise, lane=lane, num_slots=num_slots
            )
        self._lanes[lane] = slots  # the one that was used last stands last
        return slots

    def forget_lanes(self, in_use: Sequence[Lane]) -> None:
        """Gives back the memory of slots that nobody is in, beyond a few."""
        for lane in [lane for lane in self._lanes if lane not in in_use][: max(0, len(self._lanes) - MAX_LANES)]:
            del self._lanes[lane]

    def release(self) -> None:
        """Gives all slots back. Every job has to enter again."""
        self._lanes.clear()
        self._at_timesteps.clear()

    # ---- decoding

    @torch.no_grad()
    def decode(
        self, latents: Sequence[Tensor | None], *, with_patches: bool, with_latents: bool = False
    ) -> list[Decoded | None]:
        """Pictures of latents (1, c, h, w) of one size, by slot; all slots are computed. with_latents: and these
        pictures encoded again.
        """
        empty = torch.zeros_like(next(latent for latent in latents if latent is not None))
        batch = torch.cat([empty if latent is None else latent for latent in latents])
        filled = sum(latent is not None for latent in latents) / len(latents)
        shapes = (tuple(batch.shape), with_patches)
        pixels, patches = self._counted("decode", shapes, lambda: self._look(batch, with_patches), filled)
        finite = torch.isfinite(pixels).flatten(1).all(dim=1).tolist()
        made: list[Decoded | None] = []
        for slot, latent in enumerate(latents):
            image = to_image(pixels[slot]) if latent is not None and finite[slot] else None
            own = None if patches is None else patches[slot : slot + 1]
            again = self.encode_source(image) if image is not None and with_latents else None
            made.append(None if latent is None else Decoded(image, own, again))
        return made

    def _look(self, latents: Tensor, with_patches: bool) -> tuple[Tensor, Tensor | None]:
        """Pixels (S, 3, H, W) in [-1, 1] and patch tokens (S, N, D) of latents."""
        pixels = decode_latents(self._stack, latents).clamp(-1, 1)
        if not with_patches or self._networks.stop_encoder is None:
            return pixels, None
        return pixels, self._networks.stop_encoder.patch_tokens(pixels.nan_to_num())

    def _counted(self, part: str, shapes: Hashable, call: Callable[[], ResultT], filled: float = 1.0) -> ResultT:
        result, flop = self._flop((part, shapes), call)
        self._counters.add(f"flop.{part}", flop * filled)
        return result


def shape_of(kv: SubjectKV) -> tuple[object, ...]:
    """What subjects need to have in common to share a call: tokens by block, and whether some of them are masked."""
    return (*(key.shape[2] for key, _ in kv.pairs.values()), kv.mask is not None)


def num_bytes(kv: SubjectKV) -> int:
    """Memory that a subject's keys and values take."""
    return sum(tensor.nbytes for pair in kv.pairs.values() for tensor in pair)
