"""What a GPU could compute, by its name."""

import pytest

from ezigen.models.peak import peak_flops, peak_of


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA A100-SXM4-80GB", 312)],
)
def test_a_known_gpu_is_found_by_a_part_of_its_name(name, tflops):
    assert peak_of(name) == tflops * 1e12


def test_nothing_is_said_of_what_is_not_known():
    assert peak_of("NVIDIA GeForce 256") is None
    assert peak_flops("cpu", "bfloat16") is None
    assert peak_flops("cuda", "float32") is None
