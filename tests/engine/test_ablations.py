"""Under every switch of the ablations the engine makes the sampler's images."""

from dataclasses import replace

import pytest
import torch

from ezigen.config import EditConfig, ErrorCode, ItemError, LoopConfig, released
from ezigen.engine import EngineLimits
from ezigen.models import load_text_image_encoder
from ezigen.sampling.autostop import GlobalEncoder
from ezigen.subject import SubjectFeatures
from tests.engine.test_engine import assert_close, assert_equal, engine, product, reference, run
from tests.ezigen.test_editing import edit_request
from tests.ezigen.test_sampling import picture, request

FIXED = {"stop": "fixed", "num_loops": 1}
LOOPS = LoopConfig(**FIXED, renoise_timestep=400, through_pixels=True, keeps_negative_prompt=False)
RELEASED = {name: getattr(released(), name) for name in released().model_fields_set - {"edit"}}


@pytest.fixture(scope="session")
def clip(tiny_folder):
    return GlobalEncoder(load_text_image_encoder(str(tiny_folder / "clip"), "cpu"))


@pytest.mark.parametrize(
    "setting",
    [
        {"t_sub": "adaptive", "loops": LoopConfig(**FIXED)},
        {"t_sub": "adaptive", "mode": "full_injection", "guidance_min_timestep": 200},
        {"subject_noise": "item", "subject_slots": 2, "subject_fit": "squash", "loops": LOOPS},
        RELEASED,
    ],
    ids=["adaptive", "adaptive, full injection", "switches", "released"],
)
def test_equals_the_sampler_under_every_switch(tiny_stack, adapters, clip, setting):
    """Two items of one subject, one of another; the second of them without pictures on the way."""
    requests = [request(0), replace(request(1, subjects=(picture(0),)), preview=False), request(2)]
    setting = {"negative_prompt": "dark blur", **setting}
    made = run(engine(tiny_stack, adapters, clip, num_slots=2, **setting), requests)
    expected = reference(tiny_stack, adapters, clip, requests, num_slots=2, **setting)
    for key, sample in expected.items():
        ours = made[key]
        assert_equal(ours, sample if key != "item-1" else replace(sample, loops=(), sketch=None))


@pytest.mark.parametrize(
    "changes",
    [{"edit": EditConfig(background_lag=1, keeps_background=False), "loops": LOOPS}, {"t_sub": "adaptive"}],
    ids=["background", "adaptive"],
)
def test_equals_the_sampler_with_edits(tiny_stack, adapters, changes):
    requests = [edit_request(0), edit_request(1)]
    made = run(engine(tiny_stack, adapters, num_slots=2, **changes), requests)
    for key, sample in reference(tiny_stack, adapters, None, requests, num_slots=2, **changes).items():
        assert_equal(made[key], sample)


def test_a_subject_is_encoded_once_per_timestep_for_all_its_items(tiny_stack, adapters):
    """Two items and one loop with two transfer steps: two timesteps, and one evaluation that finds the shapes."""
    requests = [request(index, subjects=(picture(0),)) for index in range(2)]
    setting = {"t_sub": "adaptive", "loops": LoopConfig(**FIXED)}
    made = engine(tiny_stack, adapters, **setting)
    first = run(made, requests)
    assert made.counters["unet_calls.encode"] == 3
    forgetful = engine(tiny_stack, adapters, limits=EngineLimits(num_slots=3, cached_subject_bytes=0), **setting)
    again = run(forgetful, requests)
    assert forgetful.counters["unet_calls.encode"] > 3
    for key, sample in first.items():
        assert_equal(again[key], sample)


def test_memory_may_run_out_between_timesteps(tiny_stack, adapters):
    """The slots are halved and every image is as it would have been."""
    setting = {"t_sub": "adaptive", "loops": LoopConfig(**FIXED), "subject_tokens": "foreground"}
    requests = [request(index, subjects=(product(index, 4 + index),)) for index in range(3)]
    calls = []

    def fail_once(call):
        calls.append(call)
        if len(calls) == 7:
            raise torch.OutOfMemoryError

    made = engine(tiny_stack, adapters, num_slots=2, on_call=fail_once, **setting)
    samples = run(made, requests)
    assert made.counters["halvings"] == 1
    for key, sample in run(engine(tiny_stack, adapters, num_slots=2, **setting), requests).items():
        assert_close(samples[key], sample)


def test_features_of_one_timestep_are_refused(tiny_stack, adapters):
    known = SubjectFeatures({})
    for changes, named in (
        ({"t_sub": "adaptive"}, "t_sub adaptive"),
        ({"subject_noise": "item"}, "subject_noise item"),
        ({"subject_fit": "squash"}, "subject_fit squash"),
    ):
        with pytest.raises(ItemError, match=f"item-0: .*{named}") as caught:
            engine(tiny_stack, adapters, **changes).add(request(0, features=(known,)))
        assert caught.value.code is ErrorCode.ROW_INVALID
