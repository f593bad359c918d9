"""The evaluation of edits: what its measures see."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ezigen.config import LoopConfig, ModelConfig, SamplerConfig
from ezigen.mini.edits import (
    background_is_kept,
    cut_region,
    cut_subject,
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


def test_regions_are_cut_to_the_mask_on_white():
    picture, mask = Image.new("RGB", (20, 10), "red"), Image.new("L", (20, 10), 0)
    ImageDraw.Draw(mask).rectangle((4, 2, 8, 5), fill=255)
    assert cut_region(picture, mask).size == (5, 4)
    assert cut_region(picture, mask).getcolors() == [(20, (255, 0, 0))]
    white = Image.new("RGB", (20, 10), "white")
    white.paste("blue", (4, 2, 9, 6))
    assert cut_subject(white).size == (5, 4)


def test_dino_sub_sees_the_region_alone(cases):
    dino, case = load_image_encoder("mini"), cases[0]
    side = case.subject.width
    scene = Image.effect_noise((3 * side, 3 * side), 90).convert("RGB")
    scene.paste(case.subject, (side, side))
    mask = Image.new("L", scene.size, 0)
    mask.paste(Image.eval(case.subject.convert("L"), lambda value: 255 * (value < 240)), (side, side))
    assert dino_sub(dino, scene, mask, case.subject) > 0.95
    assert dino_sub(dino, case.edit.source.rgb, case.edit.mask, case.subject) < 0.8


def test_an_edit_of_the_embedded_model_brings_the_subject_and_keeps_the_rest(cases):
    sampler = SamplerConfig(num_steps=8, split_ratio=0.7, loops=LoopConfig(stop="fixed", num_loops=1))
    generator = load_generator(ModelConfig(model="mini"), sampler)
    samples = edit_all(generator, cases)
    found = measure(load_image_encoder("mini"), cases, samples)
    assert found["background_kept"] == 1.0
    assert found["dino_sub_edit"][0] > found["dino_sub_source"][0] + 0.1
    broken = np.array(samples[0].image)
    broken[0, 0] ^= 1
    assert not background_is_kept(cases[0], replace(samples[0], image=Image.fromarray(broken)))
    coarse = inversion_psnr(generator.stack, sampler, cases)
    fine = inversion_psnr(generator.stack, sampler.model_copy(update={"num_steps": 32}), cases)
    assert 18 < coarse["psnr_inversion"] < fine["psnr_inversion"] < fine["psnr_vae"] + 0.5
