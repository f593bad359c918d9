"""The number of slots that an engine starts with."""

import pytest
import torch

from ezigen.config import ModelConfig, SamplerConfig, embedded
from ezigen.engine.runner import Networks
from ezigen.engine.sizing import fitting_slots, slots_within
from ezigen.sampling.load import load_networks

MEASURED = {1: 100, 3: 140}  # 80 once and 20 per slot


@pytest.mark.parametrize(
    ("available", "slots"), [(0, 1), (99, 1), (119, 1), (120, 2), (1000, 46), (10_000, 64), (139.9, 2), (140, 3)]
)
def test_as_many_slots_as_fit(available, slots):
    assert slots_within(available, MEASURED, most=64) == slots


def test_slots_that_cost_nothing_measurable_are_all_there():
    assert slots_within(1e9, {1: 50, 3: 50}, most=8) == 8
    assert slots_within(10, {1: 50, 3: 40}, most=8) == 1


def test_a_cpu_keeps_what_it_is_given(tiny_stack, adapters):
    assert fitting_slots(Networks(tiny_stack, adapters), SamplerConfig(), 5) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_as_many_as_it_holds():
    networks = Networks(*load_networks(ModelConfig(device="cuda"), embedded()))
    assert fitting_slots(networks, embedded(), 64) == 64  # the embedded model is small
    most = 10**9
    everything = fitting_slots(networks, embedded(), most)
    held = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.9), dtype=torch.uint8, device="cuda")
    assert 1 <= fitting_slots(networks, embedded(), most) < 0.2 * everything < most
    del held
