"""The method for many requests at once: step-level continuous batching.

Requests enter and leave at any step. What several of them need is computed once: texts, subjects, sketches, and whole
images where requests differ in their keys alone. `ezigen.sampling` is the same method for one batch, readable beside
the paper; both make the same images.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor

from ezigen.config import ErrorCode, ItemError, SamplerConfig, SubjectEncoderKind
from ezigen.diffusion import NoiseSource
from ezigen.engine.cache import Cache
from ezigen.engine.counters import Counters
from ezigen.engine.ended import Ended
from ezigen.engine.loops import LoopForecast
from ezigen.engine.planner import Call, Kind, Lane, Leg, StepPlanner
from ezigen.engine.route import Route
from ezigen.engine.runner import Decoded, Networks, Runner, num_bytes, shape_of
from ezigen.engine.work import Guide, InversionJob, ItemJob, ItemKey, Passage, SketchJob, SketchKey, SubjectJob
from ezigen.models.faults import is_device_fault, is_out_of_memory
from ezigen.models.peak import peak_flops
from ezigen.models.text import TextCondition
from ezigen.sampling.autostop import latent_similarity, patch_similarity, stop_reason
from ezigen.sampling.editing import begin_trajectory, make_background, prepare_edit
from ezigen.sampling.needs import check_networks
from ezigen.sampling.request import Request, Sample, StopReason
from ezigen.sampling.subjects import check_features, fit_subject, prepare_subjects

logger = logging.getLogger(__name__)

Job: TypeAlias = SubjectJob | InversionJob | SketchJob | ItemJob

NETWORK_PARTS = ("text", "encode", "invert", "sketch", "transfer", "decode", "compile")
"""Parts of the engine's time in which a network computes, or is compiled."""

_DECODE = (Leg(Lane(Kind.DECODE)),)
_ENCODE = (Leg(Lane(Kind.ENCODE)),)


@dataclass(frozen=True)
class EngineLimits:
    """The bounds of an engine. num_slots counts samples per UNet call, decode_slots images per VAE call."""

    num_slots: int = 4
    decode_slots: int = 1
    max_held: int = 64
    """Requests that it takes before some of them have ended."""
    cached_texts: int = 512
    cached_sketches: int = 1024
    cached_subject_bytes: float = 512 * 2**20
    """Of subjects; and as much again of one subject's at several timesteps, where t_sub is adaptive."""
    cached_inversion_bytes: float = 128 * 2**20
    """Of trajectories of source pictures, beside those of the edits that are under way."""
    compiler: str | None = None
    """A backend of torch.compile, such as inductor, for the UNet's denoising steps: at most MAX_COMPILED shapes."""


class EngineFull(RuntimeError):  # noqa: N818
    """The engine holds as many requests as it may; take what has ended and come again."""


class Engine:
    """Makes the images of many requests with one set of networks. One thread at a time.

    `add` requests, call `step` while `busy`, and take what each step ended. An image depends on its request, the
    networks, the sampler and the number of slots, bit for bit, and on nothing else: not on the order, on who else is
    there, or on what is kept from before.
    """

    def __init__(
        self,
        networks: Networks,
        sampler: SamplerConfig,
        limits: EngineLimits | None = None,
        *,
        on_call: Callable[[Call[Job]], None] | None = None,
    ) -> None:
        """on_call sees every network call before it is carried out; what it raises counts as the call's own error.

        Raises ConfigurationError as `check_networks`.
        """
        check_networks(sampler, networks.adapters, networks.stop_encoder)
        self._encoder_kind: SubjectEncoderKind = (
            "frozen" if networks.adapters is None else networks.adapters.subject_encoder_kind
        )
        self.sampler = sampler
        self.stack = networks.stack
        self.limits = limits or EngineLimits()
        self.counters = Counters()
        self._noise = NoiseSource()
        self._runner = Runner(
            networks,
            sampler,
            self._noise,
            self.counters,
            compiler=self.limits.compiler,
            cached_subject_bytes=self.limits.cached_subject_bytes,
        )
        self._on_call = on_call
        self._num_slots = self.limits.num_slots
        self._decode_slots = self.limits.decode_slots
        self._planner: StepPlanner[Job] = StepPlanner(self._slots_of)
        self._route = Route(sampler, self.stack.schedule.timesteps(sampler.num_steps))
        self._forecast = LoopForecast(sampler)
        self._texts: Cache[str | None, TextCondition] = Cache(self.limits.cached_texts)
        self._sketches: Cache[SketchKey, SketchJob] = Cache(self.limits.cached_sketches)
        self._subjects: Cache[str, SubjectJob] = Cache(self.limits.cached_subject_bytes)
        self._inversions: Cache[str, InversionJob] = Cache(self.limits.cached_inversion_bytes)
        self._items: dict[ItemKey, ItemJob] = {}
        self._items_by_request: dict[str, ItemJob] = {}
        self._open_sketches: dict[SketchKey, SketchJob] = {}
        self._open_subjects: dict[str, SubjectJob] = {}
        self._open_inversions: dict[str, InversionJob] = {}
        self._ready: list[ItemJob] = []
        """Items with a sketch that are not residents yet, first come first served."""
        self._residents: set[ItemJob] = set()
        """Items with a subject: what takes memory, and therefore bounded."""
        self._ended: list[Ended] = []
        self._short_of_memory: WeakSet[Job] = WeakSet()
        """Subjects and images for which the denoising slots were halved already."""
        self._drains = False

    # ---- coming and going

    @property
    def num_held(self) -> int:
        """Requests that have not ended."""
        return len(self._items_by_request)

    @property
    def num_slots(self) -> int:
        """Samples per UNet call: the limit's, or less after memory ran out."""
        return self._num_slots

    @property
    def peak_flops(self) -> float | None:
        """What the device could compute per second in the stack's precision; None where that is not known."""
        return peak_flops(self.stack.device.type, str(self.stack.dtype).removeprefix("torch."))

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to tell."""
        return bool(self._items_by_request or self._ended)

    def add(self, request: Request) -> None:
        """Takes a request. Raises EngineFull; ValueError for a key that is here already; ItemError for a request
        without a subject picture in a mode that needs one, or without the face that it is to be cropped to, for
        features of a subject that this sampler encodes in another way, and for an edit that cannot be made (see
        `prepare_edit`).
        """
        if self.num_held >= self.limits.max_held:
            raise EngineFull(f"{self.num_held} requests are here already")
        if request.key in self._items_by_request:
            raise ValueError(f"a request with key {request.key!r} is here already")
        canvas = prepare_edit(request, self.stack, self.sampler)
        size_px = self.stack.image_size_px
        if self._route.needs_subject:
            check_features(request, self.sampler, self._encoder_kind)
            request = prepare_subjects(request, self.sampler, size_px)
        else:
            request = replace(request, subjects=(), subject_classes=(), mix=())
        pictures = tuple(fit_subject(picture, size_px, self.sampler) for picture in request.subjects)
        request = replace(request, subjects=pictures)
        key = (
            _subject_key(request, self._subject_seed(request)),
            _sketch_key(request),
            "" if canvas is None else canvas.hash(),
        )
        twin = self._items.get(key)
        self.counters.add("hits.item" if twin else "misses.item")
        if twin is not None:
            twin.requests.append(request)
            self._items_by_request[request.key] = twin
            return
        item = self._items[key] = self._items_by_request[request.key] = ItemJob([request], key, canvas=canvas)
        if self._route.sketch and canvas is None:
            self._await_sketch(item)
        else:
            self._ready.append(item)

    def cancel(self, key: str) -> bool:
        """Forgets a request; its slot is free at the next step. False if it is not here (any more)."""
        item = self._items_by_request.pop(key, None)
        if item is None:
            return False
        item.requests = [request for request in item.requests if request.key != key]
        if not item.requests:
            self._forget(item)
        return True

    def withdraw(self, max_requests: int) -> list[str]:
        """Forgets up to so many requests whose subject was not touched yet, the last ones first, and returns their
        keys: another engine can make them sooner.
        """
        fresh = [key for key, item in self._items_by_request.items() if item not in self._residents]
        chosen = fresh[: -max_requests - 1 : -1]
        for key in chosen:
            self.cancel(key)
        return chosen

    def drain(self, drains: bool = True) -> None:
        """Says that no more requests are to come: those with the most expected work left then go first."""
        self._drains = drains

    def generate(self, requests: Iterable[Request]) -> Iterator[Ended]:
        """What becomes of each request, as it ends. Reads ahead as far as the engine holds."""
        intake = iter(requests)
        self.drain(False)
        while not self._drains or self.busy:
            while not self._drains and self.num_held < self.limits.max_held:
                request = next(intake, None)
                if request is None:
                    self.drain()
                    break
                try:
                    self.add(request)
                except ItemError as error:
                    yield Ended(request.key, error=error)
            yield from self.step()

    # ---- one step

    def step(self) -> list[Ended]:
        """One network call, and the requests that it ended.

        An out-of-memory error halves the slots and loses nothing; any other error ends the requests that it belongs to,
        but one of the device itself (`is_device_fault`) is raised.
        """
        started, inside = perf_counter(), self._network_seconds()
        self._admit()
        call = self._planner.plan()
        if call is not None:
            self._carry_out(call)
        elif not self._ended and self._items_by_request:
            raise AssertionError(f"{self.num_held} requests are held, but nothing is left to do for them")
        ended, self._ended = self._ended, []
        self.counters.add("seconds.planning", perf_counter() - started - (self._network_seconds() - inside))
        return ended

    def _network_seconds(self) -> float:
        return sum(self.counters[f"seconds.{part}"] for part in NETWORK_PARTS)

    def _carry_out(self, call: Call[Job]) -> None:
        try:
            self._compute(call)
        except Exception as error:
            if is_device_fault(error):
                raise
            if is_out_of_memory(error):
                self._make_do_with_less(call, error)
            elif len(call.jobs) == 1:
                self._fail(call.jobs[0], error)
            else:
                self._carry_out_one_by_one(call, error)
        else:
            for job in self._planner.done(call):
                self._go_on(job, call.lane.kind)

    def _carry_out_one_by_one(self, call: Call[Job], error: Exception) -> None:
        """The same call with one job at a time, so that only those fail that cannot be computed."""
        logger.warning("a call with %d jobs failed (%s); each goes alone", len(call.jobs), _describe(error))
        for slot, job in enumerate(call.slots):
            if job is not None:
                alone = tuple(job if index == slot else None for index in range(len(call.slots)))
                self._carry_out(Call(call.lane, alone, (slot,) if slot in call.entering else ()))

    def _make_do_with_less(self, call: Call[Job], error: Exception) -> None:
        """Half as many slots. The call was not carried out, so its jobs come again as they were before it.

        Where one subject or one image finds no room, the denoising slots have taken it: they are halved, once for each
        such job, so that one that fits nowhere does not slow all others down.
        """
        self._runner.release()
        self._subjects.clear()
        self._inversions.clear()
        _free_device_memory()
        width, kind = len(call.slots), call.lane.kind
        if kind is Kind.DECODE and width > 1:
            self._decode_slots = (width + 1) // 2
            self._count_halving(kind, width, self._decode_slots, error)
        elif self._num_slots > 1 and (kind.denoises or self._short_of_memory.isdisjoint(call.jobs)):
            before, self._num_slots = self._num_slots, (self._num_slots + 1) // 2
            self._count_halving(kind, before, self._num_slots, error)
            if not kind.denoises:
                self._short_of_memory.update(call.jobs)
        else:
            for job in call.jobs:
                self._fail(job, ItemError(ErrorCode.OUT_OF_MEMORY, f"no memory for one image: {_describe(error)}"))
        self._planner.resize()

    def _count_halving(self, kind: Kind, slots: int, fewer: int, error: Exception) -> None:
        self.counters.add("halvings")
        logger.warning(
            "out of memory (%s) with %d slots, going on with %d: %s", kind.name.lower(), slots, fewer, _describe(error)
        )

    def _slots_of(self, lane: Lane) -> int:
        if lane.kind is Kind.ENCODE:
            return 1
        return self._decode_slots if lane.kind is Kind.DECODE else self._num_slots

    # ---- computing

    def _compute(self, call: Call[Job]) -> None:
        if self._on_call is not None:
            self._on_call(call)
        kind = call.lane.kind
        if kind.denoises:
            self._enter(call)
        started = perf_counter()
        with self.counters.timed(kind.name.lower()):
            if kind is Kind.ENCODE:
                self._encode(call)
            elif kind is Kind.DECODE:
                self._decode(call)
            else:
                self._denoise(call)
        share = (perf_counter() - started) / len(call.jobs)
        for job in call.jobs:
            job.seconds += share

    def _encode(self, call: Call[Job]) -> None:
        for job in call.jobs:
            if isinstance(job, InversionJob):
                source = self._runner.encode_source(job.picture)
                guide = Guide(self._runner.exceptional, self._runner.exceptional)
                trajectory = begin_trajectory(source, self._route.edit_passes)
                job.passage = Passage(source, guide, 0, self._route.inversion, trajectory=trajectory)
                continue
            assert isinstance(job, SubjectJob)
            job.kv = self._runner.encode_subject(job, self._route.passes[0].t)
            self.counters.add("unet_calls.encode", job.num_to_encode)
            if job.features:  # somebody looked for them
                self.counters.add("hits.features", len(job.pictures) - job.num_to_encode)
                self.counters.add("misses.features", job.num_to_encode)

    def _enter(self, call: Call[Job]) -> None:
        """Texts and subjects of jobs that are new in their slots; and with the first of a lane, its compiled UNet."""
        if not call.entering:
            return
        with self.counters.timed(call.lane.kind.name.lower()):
            self._runner.forget_lanes(self._planner.lanes)
            for slot in call.entering:
                if (job := call.slots[slot]) is not None:
                    self._runner.enter(call.lane, len(call.slots), slot, _passage(job).guide)
        self._runner.compile_step(call.lane, len(call.slots))

    def _denoise(self, call: Call[Job]) -> None:
        passages = [None if job is None else _passage(job) for job in call.slots]
        self._runner.denoise(call.lane, passages)
        name = call.lane.kind.name.lower()
        self._count_slots(call, name)
        self.counters.add(f"unet_calls.{name}", len(call.jobs) * (1 + call.lane.guided))

    def _decode(self, call: Call[Job]) -> None:
        latents = [None if job is None else _latents_to_decode(job) for job in call.slots]
        encodes = self.sampler.loops_through_pixels
        compares = self.sampler.stops_by_image and any(isinstance(job, ItemJob) for job in call.jobs)
        made = self._runner.decode(latents, with_patches=compares, with_latents=encodes)
        for job, decoded in zip(call.slots, made, strict=True):
            if isinstance(job, SketchJob) and decoded is not None:
                job.image = decoded.image
            elif isinstance(job, ItemJob) and decoded is not None:
                self._take_image(job, decoded)
        self._count_slots(call, "decode")

    def _count_slots(self, call: Call[Job], name: str) -> None:
        self.counters.add(f"slot_steps.{name}", len(call.slots))
        self.counters.add(f"filled.{name}", len(call.jobs))

    def _take_image(self, item: ItemJob, decoded: Decoded) -> None:
        item.image, item.restart = decoded.image, decoded.latents
        if decoded.image is not None and self._route.needs_subject and item.wants_preview:
            item.images.append(decoded.image)
        if decoded.patches is None:
            return
        if item.reference is not None:
            item.similarities.append(patch_similarity(decoded.patches, item.reference).item())
        item.reference = decoded.patches

    def _go_on(self, job: Job, came_from: Kind) -> None:
        """A job has left its last lane."""
        if isinstance(job, SubjectJob):
            self._end_subject(job)
        elif isinstance(job, InversionJob):
            self._end_inversion(job)
        elif isinstance(job, SketchJob):
            if came_from is Kind.SKETCH and any(item.wants_preview for item in job.waiting):
                self._planner.add(job, _DECODE)
            else:
                self._end_sketch(job)
        elif came_from is Kind.DECODE:
            self._end_decoding(job)
        else:
            self._end_pass(job)

    # ---- sketches, inversions and subjects: computed once, for all who wait

    def _await_sketch(self, item: ItemJob) -> None:
        key = item.key[1]
        sketch = self._open_sketches.get(key) or self._sketches.get(key)
        if sketch is None:
            passage = Passage(self._initial(item), self._guide(item), item.request.seed, self._route.sketch)
            sketch = self._open_sketches[key] = SketchJob(key, passage)
            self._planner.add(sketch, self._route.sketch_legs())
            self.counters.add("misses.sketch")
        else:
            self.counters.add("hits.sketch")
        item.sketch = sketch
        if sketch.is_drawn and (sketch.image is not None or not item.wants_preview):
            self._ready.append(item)
            return
        sketch.waiting.append(item)
        if sketch.is_drawn and sketch not in self._planner:  # drawn for others, who did not want to see it
            self._open_sketches[key] = sketch
            self._planner.add(sketch, _DECODE)

    def _end_sketch(self, sketch: SketchJob) -> None:
        del self._open_sketches[sketch.key]
        self._sketches.put(sketch.key, sketch)
        self._ready += sketch.waiting
        self._share_seconds(sketch)

    def _await_inversion(self, item: ItemJob) -> None:
        """Begins, shares or finds the way of an edit's source to noise; its subject comes after it."""
        assert item.canvas is not None
        key = item.canvas.source_hash()
        known, opened = self._inversions.get(key), self._open_inversions.get(key)
        self.counters.add("hits.inversion" if known or opened else "misses.inversion")
        if known is not None:
            item.inversion = known
            self._await_subject(item)
            return
        if opened is None:
            opened = self._open_inversions[key] = InversionJob(key, item.canvas.picture)
            self._planner.add(opened, self._route.inversion_legs(item.latent_size))
        item.inversion = opened
        opened.waiting.append(item)

    def _end_inversion(self, inversion: InversionJob) -> None:
        del self._open_inversions[inversion.key]
        if inversion.passage is not None:
            inversion.passage.x0 = None  # a part of all slots' tensor, which would stay with it
        self._inversions.put(inversion.key, inversion, inversion.num_bytes)
        items = list(inversion.waiting)
        self._share_seconds(inversion)
        for item in items:
            self._await_subject(item)

    def _await_subject(self, item: ItemJob) -> None:
        key, request = item.key[0], item.request
        subject = self._subjects.get(key) or self._open_subjects.get(key)
        self.counters.add("hits.subject" if subject else "misses.subject")
        if subject is None:
            subject = self._open_subjects[key] = SubjectJob(
                key, request.subjects, request.classes, request.features, request.mix, self._subject_seed(request)
            )
            self._planner.add(subject, _ENCODE)
        item.subject = subject
        if subject.kv is None:
            subject.waiting.append(item)
        else:
            self._begin_transfer(item)

    def _end_subject(self, subject: SubjectJob) -> None:
        assert subject.kv is not None
        del self._open_subjects[subject.key]
        self._subjects.put(subject.key, subject, num_bytes(subject.kv))
        for item in subject.waiting:
            self._begin_transfer(item)
        self._share_seconds(subject)

    @staticmethod
    def _share_seconds(job: SubjectJob | InversionJob | SketchJob) -> None:
        for item in job.waiting:
            item.seconds += job.seconds / len(job.waiting)
        job.waiting, job.seconds = [], 0.0

    # ---- the way of an item

    def _admit(self) -> None:
        """Items become residents while there is room for them: enough that one lane can always be filled."""
        room = self._num_slots * (1 + self._route.num_transfer_lanes) + self._decode_slots
        while self._ready and len(self._residents) < room:
            item = self._ready.pop(0)
            self._residents.add(item)
            if item.canvas is not None:
                self._await_inversion(item)
            elif self._route.needs_subject:
                self._await_subject(item)
            else:
                self._begin_pass(item, self._initial(item))

    def _begin_transfer(self, item: ItemJob) -> None:
        sketch = item.sketch
        if item.canvas is not None:
            assert item.inversion is not None
            trajectory, edit = item.inversion.trajectory, self.sampler.edit
            item.background = make_background(item.canvas, trajectory, self._route.edit_passes, edit)
            self._begin_pass(item, item.inversion.trajectory[self._route.edit_passes[0].t])
            return
        self._begin_pass(item, self._initial(item) if sketch is None else sketch.passage.latents)

    def _begin_pass(self, item: ItemJob, latents: Tensor) -> None:
        guide = self._guide(item)
        steps = self._route.passes_of(edits=item.canvas is not None)
        item.passage = Passage(
            latents, guide, item.request.seed, steps, loop=item.num_loops, background=item.background
        )
        shape = None if guide.subject is None else shape_of(guide.subject)
        urgency = self._forecast.expected_left(item.num_loops) if self._drains else 0.0
        self._planner.add(item, self._route.pass_legs(shape, item.latent_size), urgency)

    def _end_pass(self, item: ItemJob) -> None:
        """x_0 is there: compare it, and decode it where somebody needs to see it."""
        if self.sampler.mode == "iterative" and self.sampler.loops.measure == "latent":
            latents = _passage(item).latents
            if item.reference is not None:
                item.similarities.append(latent_similarity(latents, item.reference).item())
            item.reference = latents
        looks = self.sampler.stops_by_image or self.sampler.loops_through_pixels
        if looks or item.wants_preview or self._stop_reason(item) is not None:
            self._planner.add(item, (Leg(Lane(Kind.DECODE, latent_size=item.latent_size)),))
        else:
            self._loop(item)

    def _end_decoding(self, item: ItemJob) -> None:
        if item.image is None:
            message = f"{item.request.key}: the image is not finite; run the model with dtype bf16 or fp32"
            self._fail(item, ItemError(ErrorCode.GENERATION_FAILED, message))
            return
        reason = self._stop_reason(item)
        if reason is None:
            self._loop(item)
        else:
            item.stop_reason = reason
            self._finish(item)

    def _stop_reason(self, item: ItemJob) -> StopReason | None:
        if self.sampler.mode != "iterative":
            return "mode"
        similarity = item.similarities[-1] if item.similarities else None
        return stop_reason(self.sampler.loops, item.num_loops, similarity)

    def _loop(self, item: ItemJob) -> None:
        """Noise x_0 to the split and transfer again (paper 3.3)."""
        item.num_loops += 1
        x0 = _passage(item).latents if item.restart is None else item.restart
        noise = self._noise.batch([item.request.seed], "renoise", item.num_loops, 0, x0.shape[1:])
        first_t = self._route.passes_of(edits=item.canvas is not None)[0].t
        t = torch.tensor([self.sampler.loops.renoise_from(first_t)], device=x0.device)
        latents = self.stack.schedule.add_noise(x0, noise.to(x0.device), t)
        self._begin_pass(item, latents if item.background is None else item.background.blend(latents, first_t))

    def _initial(self, item: ItemJob) -> Tensor:
        noise = self._noise.batch([item.request.seed], "initial", 0, 0, self.stack.latent_shape)
        return noise.to(self.stack.device)

    def _guide(self, item: ItemJob) -> Guide:
        request = item.request
        text = request.negative_prompt or self.sampler.negative_prompt or None
        negative = self._text(text if item.num_loops == 0 or self.sampler.loops.keeps_negative_prompt else None)
        moving = item.subject if self.sampler.is_adaptive else None
        return Guide(self._text(request.prompt), negative, None if item.subject is None else item.subject.kv, moving)

    def _subject_seed(self, request: Request) -> int:
        return request.seed if self.sampler.subject_noise == "item" else 0

    def _text(self, prompt: str | None) -> TextCondition:
        text = self._texts.get(prompt)
        self.counters.add("misses.text" if text is None else "hits.text")
        if text is None:
            with self.counters.timed("text"):
                text = self._runner.encode_text(prompt)
            self._texts.put(prompt, text)
        return text

    # ---- endings

    def _finish(self, item: ItemJob) -> None:
        self._forecast.record(item.num_loops)
        self.counters.add("images", len(item.requests))
        self.counters.add(f"loops.{item.num_loops}", len(item.requests))
        num_passes = item.num_loops + 1
        if item.canvas is not None and item.image is not None:
            item.image = item.canvas.paste(item.image, keeps_background=self.sampler.edit.keeps_background)
        for request in item.requests:
            sample = self._to_sample(item, request, num_passes)
            self._ended.append(Ended(request.key, sample))
        self._forget(item)

    def _to_sample(self, item: ItemJob, request: Request, num_passes: int) -> Sample:
        assert item.image is not None
        return Sample(
            key=request.key,
            image=item.image,
            sketch=item.sketch.image if item.sketch is not None and request.preview else None,
            loops=tuple(item.images) if request.preview else (),
            num_loops=item.num_loops,
            stop_reason=item.stop_reason,
            similarities=tuple(item.similarities),
            num_unet_calls=self._route.num_calls(len(request.subjects), num_passes, edits=item.canvas is not None),
            seconds=item.seconds / len(item.requests),
        )

    def _fail(self, job: Job, error: Exception) -> None:
        """Ends everything that cannot go on without this job."""
        if not isinstance(error, ItemError):
            logger.error("a request failed", exc_info=error)
            error = ItemError(ErrorCode.GENERATION_FAILED, _describe(error))
        items = [job] if isinstance(job, ItemJob) else list(job.waiting)
        for item in items:
            self._ended += [Ended(request.key, error=error) for request in item.requests]
            self._forget(item)

    def _forget(self, item: ItemJob) -> None:
        """Takes an item out of everything, and with it what only it was waiting for."""
        del self._items[item.key]
        for request in item.requests:
            del self._items_by_request[request.key]
        self._residents.discard(item)
        if item in self._ready:
            self._ready.remove(item)
        if item in self._planner:
            self._planner.remove(item)
        if item.sketch is not None and _stop_waiting(item, item.sketch):
            self._abandon(item.sketch, self._open_sketches.pop(item.sketch.key, None))
        if item.inversion is not None and _stop_waiting(item, item.inversion):
            self._abandon(item.inversion, self._open_inversions.pop(item.inversion.key, None))
        if item.subject is not None and _stop_waiting(item, item.subject):
            self._abandon(item.subject, self._open_subjects.pop(item.subject.key, None))

    def _abandon(self, job: Job, opened: Job | None) -> None:
        """Nobody waits for it any more."""
        if opened is job and job in self._planner:
            self._planner.remove(job)


def _stop_waiting(item: ItemJob, job: SketchJob | SubjectJob | InversionJob) -> bool:
    """True when the item waited for the job, as the last one."""
    if item not in job.waiting:
        return False
    job.waiting.remove(item)
    return not job.waiting


def _passage(job: Job) -> Passage:
    passage = None if isinstance(job, SubjectJob) else job.passage
    assert passage is not None
    return passage


def _latents_to_decode(job: Job) -> Tensor:
    """Of a sketch what its last step foresaw, of an item x_0."""
    passage = _passage(job)
    if isinstance(job, ItemJob):
        return passage.latents
    assert passage.x0 is not None
    return passage.x0


def _sketch_key(request: Request) -> SketchKey:
    return request.prompt, request.negative_prompt, request.seed


def _subject_key(request: Request, seed: int) -> str:
    """A digest of the subject's pictures, their masks, its class and its noise."""
    digest = hashlib.blake2b(repr((request.classes, request.mix, seed)).encode(), digest_size=16)
    for picture in request.subjects:
        digest.update(picture.rgb.tobytes())
        digest.update(b"|" if picture.mask is None else picture.mask.tobytes())
    return digest.hexdigest() if request.subjects else ""


def _describe(error: BaseException, max_chars: int = 300) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:max_chars]}"


def _free_device_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
