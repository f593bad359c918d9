"""The engine makes the edits of `ezigen.sampling`, whoever else is there, and inverts nothing twice."""

import random
from dataclasses import replace

import pytest
import torch

from ezigen.config import EditConfig, ErrorCode, ItemError, LoopConfig
from ezigen.engine import EngineLimits, Kind
from tests.engine.test_engine import AUTOSTOP, assert_close, assert_equal, engine, reference, run
from tests.ezigen.test_editing import edit_of, edit_request, mask_of
from tests.ezigen.test_sampling import picture, request

MIXED = [
    request(0),
    edit_request(1),
    edit_request(2, edit_of(2, (40, 90))),
    edit_request(3, edit_of(2, (40, 90), mask_of((40, 90), (0, 50, 39, 89)))),
    request(4),
    edit_request(5, edit_of(2, (40, 90), box=(4, 4, 30, 40)), subjects=(picture(5), picture(6))),
]


@pytest.mark.parametrize(
    "setting",
    [
        {"mode": "full_injection"},
        {"mode": "decoupled", "solver": "ddpm"},
        {"solver": "dpmpp_2m"},
        {"loops": AUTOSTOP},
        {"loops": LoopConfig(min_loops=1, max_loops=5, threshold=0.9, measure="latent")},
        {"guidance_scale": 1.0, "split_ratio": 0.2},
        {"edit": EditConfig(guidance_scale=1.0, exceptional_token=3, feather=0.0)},
        {"guidance_min_timestep": 100, "split_ratio": 1.0},
    ],
    ids=str,
)
def test_edits_and_images_equal_the_sampler_bit_for_bit(tiny_stack, adapters, dinov2, setting):
    made = run(engine(tiny_stack, adapters, dinov2, **setting), MIXED)
    for key, sample in reference(tiny_stack, adapters, dinov2, MIXED, **setting).items():
        assert_equal(made[key], sample)


def test_edits_equal_the_sampler_on_xl(xl_stack, xl_adapters):
    """Latents of several sizes, each of which the UNet is told."""
    setting = {"loops": LoopConfig(stop="fixed", num_loops=1), "num_steps": 4}
    made = run(engine(xl_stack, xl_adapters, num_slots=2, **setting), MIXED[:3])
    for key, sample in reference(xl_stack, xl_adapters, None, MIXED[:3], num_slots=2, **setting).items():
        assert_equal(made[key], sample)


def test_equals_the_sampler_with_calls_for_one(tiny_stack, adapters, dinov2):
    made = run(engine(tiny_stack, adapters, dinov2), MIXED)
    for key, sample in reference(tiny_stack, adapters, dinov2, MIXED, num_slots=None).items():
        assert_close(made[key], sample)


def test_an_edit_depends_on_nobody_else(tiny_stack, adapters):
    alone = {item.key: run(engine(tiny_stack, adapters), [item])[item.key] for item in MIXED}
    shuffled = random.Random(3).sample(MIXED, len(MIXED))
    limits = EngineLimits(num_slots=3, cached_inversion_bytes=0, max_held=4)
    for made in (run(engine(tiny_stack, adapters), shuffled), run(engine(tiny_stack, adapters, limits=limits), MIXED)):
        for key, sample in alone.items():
            assert_equal(made[key], sample)


def test_a_source_is_inverted_once_and_what_is_kept_is_bounded(tiny_stack, adapters):
    made = engine(tiny_stack, adapters)
    run(made, MIXED)
    counts = made.counters.snapshot()
    # Two sources, a step each from 1 to 201: what five steps with split 0.4 leave.
    assert (counts["misses.inversion"], counts["hits.inversion"]) == (2, 2)
    assert counts["unet_calls.invert"] == counts["filled.invert"] == 2
    assert counts["flop.invert"] > 0
    assert counts["seconds.invert"] > 0
    run(made, [replace(item, seed=77) for item in MIXED[1:4]])
    assert made.counters["unet_calls.invert"] == 2
    # Three latents (of the clean source twice, in one tensor) of 4 x 9 x 5 numbers are about 4 KB.
    small = engine(tiny_stack, adapters, limits=EngineLimits(num_slots=3, cached_inversion_bytes=5000))
    for index in range(4):
        run(small, [edit_request(index)])
    assert len(small._inversions) == 1


def test_equal_edits_are_one_image(tiny_stack, adapters):
    made = engine(tiny_stack, adapters)
    samples = run(made, [replace(MIXED[1], key="a"), replace(MIXED[1], key="b")])
    assert samples["a"].image.tobytes() == samples["b"].image.tobytes()
    assert (made.counters["images"], made.counters["hits.item"]) == (2, 1)


def test_calls_of_edits_mix_no_sizes(tiny_stack, adapters):
    calls = []
    run(engine(tiny_stack, adapters, on_call=calls.append), MIXED)
    lanes = {call.lane for call in calls}
    assert {lane.latent_size for lane in lanes if lane.kind is Kind.INVERT} == {(6, 10), (12, 6)}
    for call in calls:
        sizes = {getattr(job, "latent_size", call.lane.latent_size) for job in call.jobs}
        assert sizes == {call.lane.latent_size} or call.lane.kind in (Kind.ENCODE, Kind.INVERT)


@pytest.mark.parametrize("kind", [Kind.ENCODE, Kind.INVERT, Kind.TRANSFER, Kind.DECODE])
def test_when_memory_runs_out_edits_go_on_with_fewer_slots(tiny_stack, adapters, kind):
    failures = iter([True])

    def no_memory(call):
        if call.lane.kind is kind and call.lane.edits and next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")

    made = engine(tiny_stack, adapters, on_call=no_memory)
    samples = run(made, MIXED)
    assert made.counters["halvings"] == 1
    expected = run(engine(tiny_stack, adapters), MIXED)
    for key, sample in expected.items():
        assert_close(samples[key], sample)


def test_an_edit_can_be_cancelled_anywhere_and_withdrawn_before_it_begins(tiny_stack, adapters):
    for num_steps in (0, 1, 2, 4, 7):
        made = engine(tiny_stack, adapters)
        for item in MIXED[1:4]:
            made.add(item)
        for _ in range(num_steps):
            made.step()
        made.cancel("item-2")
        made.cancel("item-1")
        ended = [end for end in made.generate([]) if end.key == "item-3"]
        assert len(ended) <= 1
        assert not made.busy
    fresh = engine(tiny_stack, adapters)
    for item in MIXED:
        fresh.add(item)
    assert fresh.withdraw(2) == ["item-5", "item-4"]
    assert set(run(fresh, [])) == {f"item-{index}" for index in range(4)}


def test_a_source_that_cannot_be_computed_ends_its_edits_alone(tiny_stack, adapters):
    def fail(call):
        if call.lane.kind is Kind.INVERT and call.lane.latent_size == (12, 6):
            raise ValueError("no")

    made = engine(tiny_stack, adapters, on_call=fail)
    ended = {end.key: end for end in made.generate(MIXED)}
    assert {key for key, end in ended.items() if end.error is not None} == {"item-2", "item-3", "item-5"}
    assert all(end.error.code is ErrorCode.GENERATION_FAILED for end in ended.values() if end.error)


def test_a_wrong_edit_is_refused_when_it_comes(tiny_stack, adapters):
    made = engine(tiny_stack, adapters)
    with pytest.raises(ItemError, match=r"item-1: .*outside the source"):
        made.add(edit_request(1, edit_of(box=(500, 500, 600, 600))))
    with pytest.raises(ItemError, match="item-1: mode text_only"):
        engine(tiny_stack, None, mode="text_only").add(edit_request(1))
    assert not made.busy
