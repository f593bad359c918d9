"""The evaluation of edits: what its measures see."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ezigen.config import LoopConfig, ModelConfig, SamplerConfig
from ezigen.metrics import Measurer
from ezigen.mini.edits import (
    background_is_kept,
    dino_sub,
    edit_all,
    inversion_psnr,
    measure,
    read_cases,
    write_benchmark,
)
from ezigen.models import load_image_encoder
from ezigen.sampling import load_generator


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    write_benchmark(folder, num_subjects=1, num_sources=2)
    return list(read_cases(folder))


def test_dino_sub_sees_the_region_alone(cases):
    measurer, case = Measurer(None, load_image_encoder("mini")), cases[0]
    side = case.subject.width
    scene = Image.effect_noise((3 * side, 3 * side), 90).convert("RGB")
    scene.paste(case.subject, (side, side))
    mask = Image.new("L", scene.size, 0)
    mask.paste(Image.eval(case.subject.convert("L"), lambda value: 255 * (value < 240)), (side, side))
    assert dino_sub(measurer, scene, mask, case.subject) > 0.95
    assert dino_sub(measurer, case.edit.source.rgb, case.edit.mask, case.subject) < 0.8


def test_an_edit_of_the_embedded_model_brings_the_subject_and_keeps_the_rest(cases):
    sampler = SamplerConfig(num_steps=8, split_ratio=0.7, loops=LoopConfig(stop="fixed", num_loops=1))
    generator = load_generator(ModelConfig(model="mini"), sampler)
    samples = edit_all(generator, cases)
    found = measure(Measurer(None, load_image_encoder("mini")), cases, samples)
    assert found["background_kept"] == 1.0
    assert found["dino_sub_edit"][0] > found["dino_sub_source"][0] + 0.1
    broken = np.array(samples[0].image)
    broken[0, 0] ^= 1
    assert not background_is_kept(cases[0], replace(samples[0], image=Image.fromarray(broken)))
    coarse = inversion_psnr(generator.stack, sampler, cases)
    fine = inversion_psnr(generator.stack, sampler.model_copy(update={"num_steps": 32}), cases)
    assert 18 < coarse["psnr_inversion"] < fine["psnr_inversion"] < fine["psnr_vae"] + 0.5
