"""The engine makes the images of `ezigen.sampling`, whoever else is there, and does nothing twice."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ezigen.config import ConfigurationError, ErrorCode, ItemError, LoopConfig
from ezigen.engine import Engine, EngineFull, EngineLimits, Kind, Networks, occupancy
from ezigen.images import Picture
from ezigen.sampling import Generator
from tests.ezigen.test_sampling import array, picture, request, sampler

AUTOSTOP = LoopConfig(min_loops=1, max_loops=3, threshold=0.995)
MODES = ("text_only", "full_injection", "decoupled", "iterative")


def engine(stack, adapters, dinov2=None, num_slots=3, limits=None, on_call=None, **changes):
    limits = limits or EngineLimits(num_slots=num_slots)
    return Engine(Networks(stack, adapters, dinov2), sampler(**changes), limits, on_call=on_call)


def run(made, requests):
    """Samples by key; an error of any request is raised."""
    samples = {}
    for ended in made.generate(requests):
        if ended.error is not None:
            raise ended.error
        samples[ended.key] = ended.sample
    assert not made.busy
    return samples


def reference(stack, adapters, dinov2, requests, num_slots=3, **changes):
    """By the readable sampler, whose images do not depend on their mates; its network calls as wide as the engine's."""
    setting, size = sampler(**changes), num_slots or 1
    made = Generator(stack, adapters, dinov2 if setting.stops_by_image else None, setting, num_slots=num_slots)
    parts = [requests[start : start + size] for start in range(0, len(requests), size)]
    return {sample.key: sample for part in parts for sample in made.generate(part)}


def assert_close(one, other, levels=2):
    """Equal but for what another batch size or a mask rounds away, and these untrained networks make larger."""
    assert np.abs(array(one.image) - array(other.image)).max() <= levels
    assert len(one.loops) == len(other.loops)
    for ours, theirs in zip(one.loops, other.loops, strict=True):
        assert np.abs(array(ours) - array(theirs)).max() <= levels
    assert one.similarities == pytest.approx(other.similarities, abs=1e-4)
    assert (one.sketch is None) == (other.sketch is None)
    if one.sketch is not None:
        assert np.abs(array(one.sketch) - array(other.sketch)).max() <= levels
    assert (one.key, one.num_loops, one.stop_reason, one.num_unet_calls) == (
        other.key,
        other.num_loops,
        other.stop_reason,
        other.num_unet_calls,
    )


def assert_equal(one, other):
    """Bit for bit."""
    assert one.image.tobytes() == other.image.tobytes()
    assert [image.tobytes() for image in one.loops] == [image.tobytes() for image in other.loops]
    assert (one.sketch and one.sketch.tobytes()) == (other.sketch and other.sketch.tobytes())
    assert (one.key, one.similarities, one.num_loops, one.stop_reason, one.num_unet_calls) == (
        other.key,
        other.similarities,
        other.num_loops,
        other.stop_reason,
        other.num_unet_calls,
    )


# --- the same images as the readable sampler ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m"])
def test_equals_the_sampler_in_every_mode_and_solver(tiny_stack, adapters, dinov2, mode, solver):
    requests = [request(index) for index in range(4)]
    setting = {"mode": mode, "solver": solver, "loops": AUTOSTOP}
    made = run(engine(tiny_stack, adapters, dinov2, **setting), requests)
    expected = reference(tiny_stack, adapters, dinov2, requests, **setting)
    for key, sample in expected.items():
        assert_equal(made[key], sample)


@pytest.mark.parametrize("mode", ["text_only", "iterative"])
def test_equals_the_sampler_on_xl(xl_stack, xl_adapters, dinov2, mode):
    """With no text, an empty one and a negative prompt, which differ there, in slots that are used again."""
    requests = [request(0), request(1, prompt=""), request(2, negative_prompt="dark blur"), request(3)]
    setting = {"mode": mode, "loops": AUTOSTOP, "guidance_min_timestep": 200}
    made = run(engine(xl_stack, xl_adapters, dinov2, num_slots=2, **setting), requests)
    for key, sample in reference(xl_stack, xl_adapters, dinov2, requests, num_slots=2, **setting).items():
        assert_equal(made[key], sample)


@pytest.mark.parametrize("mode", ["text_only", "iterative"])
def test_equals_the_sampler_with_calls_for_one(tiny_stack, adapters, dinov2, mode):
    requests = [request(index) for index in range(4)]
    made = run(engine(tiny_stack, adapters, dinov2, mode=mode), requests)
    for key, sample in reference(tiny_stack, adapters, dinov2, requests, num_slots=None, mode=mode).items():
        assert_close(made[key], sample)


@pytest.mark.parametrize(
    "setting",
    [
        {"guidance_scale": 1.0},
        {"guidance_min_timestep": 100},
        {"guidance_max_timestep": 500},
        {"guidance_min_timestep": 200, "guidance_max_timestep": 700, "solver": "dpmpp_2m"},
        {"split_ratio": 1.0},
        {"split_ratio": 0.2, "num_steps": 7},
        {"loops": LoopConfig(stop="fixed", num_loops=0)},
        {"loops": LoopConfig(min_loops=1, max_loops=5, threshold=0.9, measure="latent")},
        {"negative_prompt": "dark blur", "t_sub": 100},
    ],
    ids=str,
)
def test_equals_the_sampler_under_every_knob(tiny_stack, adapters, dinov2, setting):
    requests = [request(index) for index in range(4)]
    setting = {"loops": AUTOSTOP, **setting}
    made = run(engine(tiny_stack, adapters, dinov2, **setting), requests)
    for key, sample in reference(tiny_stack, adapters, dinov2, requests, **setting).items():
        assert_equal(made[key], sample)


def product(seed, radius):
    """A disc on white, and where it is."""
    picture_, mask = Image.new("RGB", (32, 32), "white"), Image.new("L", (32, 32), 0)
    box = (16 - radius, 16 - radius, 16 + radius, 16 + radius)
    ImageDraw.Draw(picture_).ellipse(box, fill=(40 * seed, 90, 200 - 30 * seed))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return Picture(picture_, mask)


def test_foreground_tokens_equal_masked_ones(tiny_stack, adapters):
    """Subjects of very different sizes, one without a mask, one with two pictures."""
    subjects = [(product(0, 3),), (product(1, 8),), (picture(2),), (product(3, 14),), (product(1, 4), product(2, 12))]
    requests = [request(index, subjects=pictures) for index, pictures in enumerate(subjects)]
    setting = {"subject_tokens": "foreground"}
    made = run(engine(tiny_stack, adapters, **setting), requests)
    for key, sample in reference(tiny_stack, adapters, None, requests, **setting).items():
        assert_close(made[key], sample)
    everything = run(engine(tiny_stack, adapters), requests)
    assert made["item-0"].image.tobytes() != everything["item-0"].image.tobytes()
    assert made["item-2"].image.tobytes() == everything["item-2"].image.tobytes()


def test_subjects_of_several_pictures_share_an_engine(tiny_stack, adapters, dinov2):
    requests = [request(index, subjects=tuple(picture(n) for n in range(1 + index % 3))) for index in range(6)]
    made = run(engine(tiny_stack, adapters, dinov2), requests)
    for key, sample in reference(tiny_stack, adapters, dinov2, requests).items():
        assert_equal(made[key], sample)


# --- independence ---


@pytest.mark.parametrize("seed", range(3))
def test_an_image_depends_on_nobody_else_bit_for_bit(tiny_stack, adapters, dinov2, seed):
    """Random orders and arrivals, some cancelled half-way: always the bits of a run alone with as many slots."""
    rng = random.Random(seed)
    requests = [request(index, prompt=request(index % 2).prompt) for index in range(8)]
    alone = {item.key: run(engine(tiny_stack, adapters, dinov2, loops=AUTOSTOP), [item])[item.key] for item in requests}
    made = engine(tiny_stack, adapters, dinov2, loops=AUTOSTOP)
    waiting, cancelled, ended = rng.sample(requests, len(requests)), set(), {}
    while waiting or made.busy:
        if waiting and (rng.random() < 0.2 or not made.busy):
            made.add(waiting.pop())
        elif rng.random() < 0.02 and made.num_held:
            cancelled.add(key := f"item-{rng.randrange(8)}")
            if not made.cancel(key):
                cancelled.discard(key)
        ended |= {one.key: one.sample for one in made.step()}
    assert set(ended) | cancelled == set(alone)
    assert not set(ended) & cancelled
    for key, sample in ended.items():
        assert_equal(sample, alone[key])


def test_what_is_kept_from_before_changes_nothing(tiny_stack, adapters, dinov2):
    made = engine(tiny_stack, adapters, dinov2)
    first = run(made, [request(0), request(1)])
    again = run(made, [request(1), request(0)])
    for key, sample in first.items():
        assert_equal(again[key], sample)
    assert made.counters["hits.sketch"] == made.counters["hits.subject"] == 2


# --- nothing twice ---


def test_equal_sketches_are_drawn_once(tiny_stack, adapters):
    """Four products per prompt and seed: a quarter of the sketch's evaluations."""
    requests = [request(index, prompt=request(index // 4).prompt, seed=index // 4) for index in range(8)]
    shared, apart = engine(tiny_stack, adapters), engine(tiny_stack, adapters)
    made = run(shared, requests)
    run(apart, [replace(item, seed=index) for index, item in enumerate(requests)])
    assert shared.counters["unet_calls.sketch"] == apart.counters["unet_calls.sketch"] / 4
    for key, sample in reference(tiny_stack, adapters, None, requests).items():
        assert_equal(made[key], sample)


def test_a_subject_is_encoded_once_and_a_text_too(tiny_stack, adapters):
    requests = [request(index, subjects=(picture(0),)) for index in range(6)]
    made = engine(tiny_stack, adapters)
    run(made, requests)
    assert made.counters["unet_calls.encode"] == 1
    assert made.counters["misses.text"] == 5  # four prompts, and the empty negative one


def test_equal_requests_are_one_image(tiny_stack, adapters):
    twins = [request(0, key=f"twin-{number}") for number in range(3)]
    made = engine(tiny_stack, adapters)
    samples = run(made, [*twins, request(1)])
    assert len({samples[twin.key].image.tobytes() for twin in twins}) == 1
    assert [samples[twin.key].key for twin in twins] == [twin.key for twin in twins]
    assert made.counters["images"] == 4
    assert made.counters["unet_calls.encode"] == 2


def test_one_of_several_equal_requests_can_be_cancelled(tiny_stack, adapters):
    made = engine(tiny_stack, adapters)
    for number in range(3):
        made.add(request(0, key=f"twin-{number}"))
    assert made.cancel("twin-0")
    ended = [one.key for _ in range(200) if made.busy for one in made.step()]
    assert sorted(ended) == ["twin-1", "twin-2"]


def test_a_text_only_image_does_not_look_at_the_subject(tiny_stack):
    made = engine(tiny_stack, None, mode="text_only")
    samples = run(made, [request(0), request(1, prompt=request(0).prompt, seed=0, key="other")])
    assert samples["item-0"].image.tobytes() == samples["other"].image.tobytes()
    assert made.counters["misses.item"] == 1


def test_pictures_on_the_way_are_not_decoded_for_nobody(tiny_stack, adapters):
    """Fixed loops need one picture at the end; previews need the sketch and every loop."""
    made = engine(tiny_stack, adapters)
    blind = run(made, [request(0, preview=False)])["item-0"]
    assert (blind.sketch, blind.loops, made.counters["filled.decode"]) == (None, (), 1)
    seen = run(made, [request(0, key="seen")])["seen"]
    assert (seen.sketch is not None, len(seen.loops), made.counters["filled.decode"]) == (True, 3, 1 + 1 + 3)
    assert seen.image.tobytes() == blind.image.tobytes()


# --- batching ---


def test_slots_are_filled(tiny_stack, adapters, dinov2):
    """16 items per slot, with different numbers of loops: the occupancy that the counters report."""
    loops = LoopConfig(min_loops=1, max_loops=5, threshold=0.997)
    made = engine(tiny_stack, adapters, dinov2, limits=EngineLimits(num_slots=4, max_held=64), loops=loops)
    samples = run(made, [request(index, preview=False) for index in range(64)])
    assert len({sample.num_loops for sample in samples.values()}) > 1
    assert occupancy(made.counters.snapshot()) >= 0.95


def test_no_call_has_more_jobs_than_slots_or_mixes_kinds(tiny_stack, adapters):
    calls = []
    made = engine(tiny_stack, adapters, on_call=calls.append)
    run(made, [request(index) for index in range(5)])
    assert {call.lane.kind for call in calls} == set(Kind) - {Kind.INVERT}
    assert {len(call.slots) for call in calls if call.lane.kind in (Kind.SKETCH, Kind.TRANSFER)} == {3}


def test_the_engine_takes_no_more_than_it_may_hold(tiny_stack, adapters):
    made = engine(tiny_stack, adapters, limits=EngineLimits(num_slots=2, max_held=2))
    made.add(request(0))
    made.add(request(1))
    with pytest.raises(EngineFull):
        made.add(request(2))
    with pytest.raises(EngineFull):
        made.add(request(0))


def test_a_key_is_held_once(tiny_stack, adapters):
    made = engine(tiny_stack, adapters)
    made.add(request(0))
    with pytest.raises(ValueError, match="item-0"):
        made.add(request(0))


def test_fresh_requests_can_be_withdrawn_the_last_first(tiny_stack, adapters):
    made = engine(tiny_stack, adapters, num_slots=1)
    for index in range(8):
        made.add(request(index))
    for _ in range(12):
        made.step()
    withdrawn = made.withdraw(3)
    assert withdrawn == ["item-7", "item-6", "item-5"]
    rest = [one.key for _ in range(2000) if made.busy for one in made.step()]
    assert sorted(rest + withdrawn) == [f"item-{index}" for index in range(8)]


def test_cancelling_frees_the_slot_at_the_next_step(tiny_stack, adapters):
    calls = []
    made = engine(tiny_stack, adapters, num_slots=1, on_call=calls.append)
    made.add(request(0))
    made.add(request(1))
    while not calls or calls[-1].lane.kind is not Kind.TRANSFER:
        made.step()
    first = calls[-1].jobs[0].request.key
    assert made.cancel(first)
    assert not made.cancel(first)
    held = len(calls)
    while made.busy:
        made.step()
    assert first not in {job.request.key for call in calls[held:] for job in call.jobs if hasattr(job, "request")}


# --- trouble ---


class Fault:
    """Raises at the n-th call of a kind, and whenever a certain prompt's item is among the jobs."""

    def __init__(self, error, kind=Kind.TRANSFER, at=None, prompt=None):
        self.error, self.kind, self.at, self.prompt, self.seen, self.raised = error, kind, at, prompt, 0, 0

    def __call__(self, call):
        if call.lane.kind is not self.kind:
            return
        self.seen += 1
        jobs = [job for job in call.jobs if hasattr(job, "requests")]
        if self.seen == self.at or any(job.request.prompt == self.prompt for job in jobs):
            self.raised += 1
            raise self.error


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.INVERT])
def test_when_memory_runs_out_the_slots_are_halved_and_nothing_is_lost(tiny_stack, adapters, dinov2, kind):
    requests = [request(index) for index in range(6)]
    fault = Fault(torch.OutOfMemoryError("CUDA out of memory (injected)"), kind, at=2)
    limits = EngineLimits(num_slots=4, decode_slots=2)
    made = engine(tiny_stack, adapters, dinov2, limits=limits, on_call=fault)
    ended = list(made.generate(requests))
    assert fault.raised == 1
    expected = reference(tiny_stack, adapters, dinov2, requests)
    for one in ended:
        assert one.error is None
        assert_close(one.sample, expected[one.key])
    assert made.counters["halvings"] == 1
    assert made.num_slots == (4 if kind is Kind.DECODE else 2)


def test_one_decoded_image_that_finds_no_room_costs_denoising_slots(tiny_stack, adapters):
    fault = Fault(torch.OutOfMemoryError("injected"), Kind.DECODE, at=2)
    limits = EngineLimits(num_slots=4, decode_slots=1)
    made = engine(tiny_stack, adapters, limits=limits, on_call=fault, mode="decoupled")
    assert len(run(made, [request(index) for index in range(5)])) == 5
    assert made.num_slots == 2


def test_a_subject_that_fits_nowhere_ends_alone_and_halves_the_slots_once(tiny_stack, adapters):
    requests = [request(index, subject_class="giant" if index == 2 else "cup") for index in range(5)]

    def refuse(call):
        if call.lane.kind is Kind.ENCODE and call.jobs[0].classes == ("giant",):
            raise torch.OutOfMemoryError("injected")

    limits = EngineLimits(num_slots=8)
    made = engine(tiny_stack, adapters, limits=limits, on_call=refuse, mode="decoupled")
    ended = {one.key: one for one in made.generate(requests)}
    assert ended["item-2"].error.code == ErrorCode.OUT_OF_MEMORY
    assert sum(one.sample is not None for one in ended.values()) == 4
    assert (made.num_slots, made.counters["halvings"]) == (4, 1)


def test_memory_for_not_even_one_ends_that_request_alone(tiny_stack, adapters):
    prompt = request(1).prompt
    fault = Fault(torch.OutOfMemoryError("injected"), prompt=prompt)
    made = engine(tiny_stack, adapters, num_slots=2, on_call=fault)
    ended = {one.key: one for one in made.generate([request(index) for index in range(3)])}
    assert ended["item-1"].error.code == ErrorCode.OUT_OF_MEMORY
    assert ended["item-0"].sample is not None
    assert ended["item-2"].sample is not None


def test_a_request_that_cannot_be_computed_ends_alone(tiny_stack, adapters):
    fault = Fault(RuntimeError("injected"), prompt=request(1).prompt)
    made = engine(tiny_stack, adapters, on_call=fault)
    requests = [request(index) for index in range(4)]
    ended = {one.key: one for one in made.generate(requests)}
    assert ended["item-1"].error.code == ErrorCode.GENERATION_FAILED
    assert "injected" in ended["item-1"].error.message
    expected = reference(tiny_stack, adapters, None, requests)
    for key in ("item-0", "item-2", "item-3"):
        assert_equal(ended[key].sample, expected[key])


def test_a_broken_device_is_raised(tiny_stack, adapters):
    made = engine(tiny_stack, adapters, on_call=Fault(RuntimeError("CUDA error: injected"), at=1))
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(made.generate([request(0)]))


def test_an_image_that_is_not_finite_is_that_requests_error(tiny_stack, adapters):
    """fp16 overflows in some models: a broken latent must not become a black picture, nor harm its neighbours."""

    def spoil(call):
        for job in call.jobs:
            if call.lane.kind is Kind.DECODE and getattr(job, "requests", None) and job.request.key == "item-1":
                job.passage.latents = torch.full_like(job.passage.latents, float("nan"))

    made = engine(tiny_stack, adapters, limits=EngineLimits(num_slots=2, decode_slots=2), on_call=spoil)
    ended = {one.key: one for one in made.generate([request(index) for index in range(3)])}
    assert ended["item-1"].error.code == ErrorCode.GENERATION_FAILED
    assert "not finite" in ended["item-1"].error.message
    assert ended["item-0"].sample is not None
    assert ended["item-2"].sample is not None


def test_a_request_without_a_subject_is_refused_by_name(tiny_stack, adapters):
    with pytest.raises(ItemError, match=r"item-0.*subject"):
        engine(tiny_stack, adapters).add(request(0, subjects=()))
    ended = list(engine(tiny_stack, adapters).generate([request(0, subjects=()), request(1)]))
    assert [(one.key, one.error is None) for one in ended] == [("item-0", False), ("item-1", True)]


def test_what_the_sampler_needs_has_to_be_there(tiny_stack, adapters):
    with pytest.raises(ConfigurationError, match="adapter"):
        engine(tiny_stack, None)
    with pytest.raises(ConfigurationError, match="image encoder"):
        engine(tiny_stack, adapters, loops=AUTOSTOP)
    engine(tiny_stack, adapters, loops=AUTOSTOP.model_copy(update={"measure": "latent"}))


# ---- torch.compile: its front end is the same for every backend; eager has no other end, so it is quick


def test_a_compiled_unet_makes_the_same_images_and_counts_the_same(tiny_stack, adapters, dinov2):
    requests = [request(n) for n in range(4)]
    setting = {"loops": AUTOSTOP, "guidance_min_timestep": 100}
    plain = engine(tiny_stack, adapters, dinov2, **setting)
    expected = run(plain, requests)
    compiled = engine(tiny_stack, adapters, dinov2, limits=EngineLimits(num_slots=3, compiler="eager"), **setting)
    made = run(compiled, requests)
    for key, sample in made.items():
        assert_close(sample, expected[key])
    assert compiled.counters["compiled_shapes"] == 3  # the sketch, and the transfer with and without guidance
    assert compiled.counters["seconds.compile"] > 0
    for name in ("flop.sketch", "flop.transfer", "unet_calls.sketch", "unet_calls.transfer"):
        assert compiled.counters[name] == plain.counters[name]


def test_no_more_shapes_are_compiled_than_may_be(tiny_stack, adapters, monkeypatch):
    monkeypatch.setattr("ezigen.engine.runner.MAX_COMPILED", 1)
    compiled = engine(tiny_stack, adapters, limits=EngineLimits(num_slots=2, compiler="eager"), mode="decoupled")
    expected = run(engine(tiny_stack, adapters, num_slots=2, mode="decoupled"), [request(0)])
    assert_close(run(compiled, [request(0)])["item-0"], expected["item-0"])
    assert compiled.counters["compiled_shapes"] == 1


def test_where_nothing_can_be_compiled_the_run_goes_on_and_says_so(tiny_stack, adapters, caplog):
    compiled = engine(tiny_stack, adapters, limits=EngineLimits(num_slots=2, compiler="absent"), mode="decoupled")
    expected = run(engine(tiny_stack, adapters, num_slots=2, mode="decoupled"), [request(0)])
    assert_close(run(compiled, [request(0)])["item-0"], expected["item-0"])
    assert compiled.counters["compiled_shapes"] == 0
    assert caplog.text.count("the UNet cannot be compiled and runs as it is") == 1
