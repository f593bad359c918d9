"""The same on a GPU. Run with `pytest -m gpu` where there is one."""

import numpy as np
import pytest
import torch

from ezigen.config import LoopConfig, ModelConfig
from ezigen.sampling import load_generator
from tests.ezigen.test_sampling import array, assert_same, request, sampler

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def generator(folder, device, dtype, num_slots=None):
    model = ModelConfig(
        model=str(folder),
        adapter=str(folder / "adapter"),
        image_encoder=str(folder / "dinov2"),
        device=device,
        dtype=dtype,
    )
    loops = LoopConfig(min_loops=1, max_loops=2, threshold=1.0)
    return load_generator(model, sampler(loops=loops), num_slots=num_slots)


@pytest.fixture(autouse=True)
def exact_matrix_products():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_gpu_equals_cpu(tiny_folder):
    on_cpu = generator(tiny_folder, "cpu", "fp32").generate([request(0), request(1)])
    on_gpu = generator(tiny_folder, "cuda", "fp32").generate([request(0), request(1)])
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert np.abs(array(one.image) - array(other.image)).max() <= 2
        assert one.similarities == pytest.approx(other.similarities, abs=1e-3)
        assert one.num_unet_calls == other.num_unet_calls


def test_auto_is_bf16_on_the_gpu(tiny_folder):
    made = generator(tiny_folder, "auto", "auto")
    assert (made.stack.device.type, made.stack.dtype) == ("cuda", torch.bfloat16)
    full = generator(tiny_folder, "cuda", "fp32").generate([request(0)])[0]
    assert np.abs(array(made.generate([request(0)])[0].image) - array(full.image)).mean() < 8


def test_an_image_does_not_depend_on_mates(tiny_folder):
    made = generator(tiny_folder, "cuda", "bf16", num_slots=4)
    together = made.generate([request(index) for index in range(4)])
    assert_same(made.generate([request(2)])[0], together[2])
    assert_same(made.generate([request(3), request(1)])[1], together[1])
