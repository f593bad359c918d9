"""The pipeline for diffusers' habits, against diffusers' own and against the sampler."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from ezigen import EZIGenPipeline
from ezigen.config import ConfigurationError, LoopConfig, ModelConfig, SamplerConfig
from ezigen.diffusion import NoiseSchedule
from ezigen.sampling import load_generator
from tests.ezigen.test_sampling import array, make, picture, request

SETTINGS = {"num_inference_steps": 5, "guidance_scale": 4.0, "num_loops": 1}


@pytest.fixture
def pipeline(tiny_folder):
    made = EZIGenPipeline.from_pretrained(tiny_folder)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_it_makes_what_the_sampler_makes(pipeline, tiny_stack, adapters):
    made = pipeline("a photo of a cup", picture(0), "cup", generator=seeded(), **SETTINGS)
    seed = int(torch.randint(0, 2**62, (), generator=seeded()))
    sampler = {"num_steps": 5, "guidance_scale": 4.0, "loops": LoopConfig(stop="fixed", num_loops=1)}
    wanted = make(tiny_stack, adapters, **sampler).generate([request(0, prompt="a photo of a cup", seed=seed)])[0]
    assert made.images[0].tobytes() == wanted.image.tobytes()
    assert made.samples[0].num_loops == 1


def test_generators_prompts_and_numbers(pipeline):
    two = pipeline("a cup", picture(0), generator=[seeded(1), seeded(2)], num_images_per_prompt=2, **SETTINGS).images
    again = pipeline(["a cup", "a dog"], picture(0), generator=[seeded(2), seeded(1)], **SETTINGS).images
    assert np.abs(array(two[1]) - array(again[0])).max() <= 1
    assert two[0].tobytes() != two[1].tobytes()
    fresh = [pipeline("a cup", picture(0), **SETTINGS).images[0].tobytes() for _ in range(2)]
    assert fresh[0] != fresh[1]
    with pytest.raises(ConfigurationError, match="2 generators for 1 images"):
        pipeline("a cup", picture(0), generator=[seeded(1), seeded(2)], **SETTINGS)


def test_output_types(pipeline):
    make_one = {"prompt": "a cup", "subject_image": picture(0), **SETTINGS}
    image = pipeline(generator=seeded(), **make_one).images[0]
    pixels = pipeline(generator=seeded(), output_type="np", **make_one).images
    tensor = pipeline(generator=seeded(), output_type="pt", **make_one, return_dict=False)[0]
    assert pixels.shape == (1, 32, 32, 3)
    assert np.array_equal(np.rint(pixels[0] * 255), np.asarray(image))
    assert torch.equal(tensor, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with pytest.raises(ConfigurationError, match="output_type 'jpeg'"):
        pipeline(output_type="jpeg", **make_one)


def test_without_a_subject_it_is_a_text_to_image_pipeline(pipeline, tiny_stack):
    made = pipeline("a photo of a cup", generator=seeded(), **SETTINGS).images[0]
    seed = int(torch.randint(0, 2**62, (), generator=seeded()))
    plain = make(tiny_stack, None, num_steps=5, guidance_scale=4.0, mode="text_only")
    wanted = plain.generate([request(0, prompt="a photo of a cup", subjects=(), seed=seed)])[0]
    assert made.tobytes() == wanted.image.tobytes()


def test_an_edit_and_a_sketch(pipeline):
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    options = {"generator": seeded(), "image": source, **SETTINGS}
    edited = pipeline("a cup", picture(0), mask_box=(4, 4, 20, 24), **options).images[0]
    assert edited.size == source.size
    assert (array(edited)[:, 36:] == array(source)[:, 36:]).all()
    sketched = pipeline("a cup", picture(0), **options).images[0]
    assert (array(sketched)[:, 36:] != array(source)[:, 36:]).any()


def test_the_callback_sees_every_step_and_can_interrupt(pipeline):
    seen = []

    def watch(pipe, step, timestep, tensors):
        assert pipe is pipeline
        seen.append((step, timestep, tuple(tensors["x0"].shape)))
        return {}

    whole = pipeline("a cup", picture(0), generator=seeded(), callback_on_step_end=watch, **SETTINGS).images[0]
    assert [step for step, _, _ in seen] == list(range(len(seen)))
    assert [t for _, t, _ in seen[:5]] == [801, 601, 401, 201, 1]
    assert len(seen) == 5 + 2  # the loop has two steps more
    assert {shape for _, _, shape in seen} == {(1, 4, 8, 8)}

    def interrupt(pipe, step, _timestep, _tensors):
        pipe._interrupt = step == 3

    stopped = pipeline("a cup", picture(0), generator=seeded(), callback_on_step_end=interrupt, **SETTINGS)
    assert stopped.samples == []
    assert stopped.images[0].size == whole.size
    assert stopped.images[0].tobytes() != whole.tobytes()
    again = pipeline("a cup", picture(0), generator=seeded(), **SETTINGS).images[0]
    assert again.tobytes() == whole.tobytes()
    with pytest.raises(ConfigurationError, match="only x0"):
        pipeline("a cup", picture(0), callback_on_step_end_tensor_inputs=["latents"], **SETTINGS)


@pytest.mark.parametrize(
    ("scheduler", "solver"),
    [(DDPMScheduler, "ddpm"), (DPMSolverMultistepScheduler, "dpmpp_2m"), (EulerDiscreteScheduler, "ddim")],
)
def test_another_scheduler_is_another_solver(pipeline, tiny_stack, adapters, scheduler, solver):
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    made = pipeline("a photo of a cup", picture(0), "cup", generator=seeded(), **SETTINGS).images[0]
    seed = int(torch.randint(0, 2**62, (), generator=seeded()))
    sampler = {"solver": solver, "loops": LoopConfig(stop="fixed", num_loops=1)}
    stack = replace(tiny_stack, schedule=NoiseSchedule.from_config(pipeline.scheduler.config))
    wanted = make(stack, adapters, **sampler).generate([request(0, prompt="a photo of a cup", seed=seed)])[0]
    assert made.tobytes() == wanted.image.tobytes()


def test_a_saved_pipeline_is_the_same_one(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    again = EZIGenPipeline.from_pretrained(tmp_path / "saved")
    options = {"subject_image": picture(0), "subject_class": "cup", **SETTINGS}
    images = [each("a cup", generator=seeded(), **options).images[0].tobytes() for each in (pipeline, again)]
    assert images[0] == images[1]
    assert again.adapter_card.base_fingerprint != ""
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "saved" / "unet")  # a stock one, without our names
    assert not any("stock" in name for name in plain.state_dict())


def test_moving_it_moves_the_adapters(pipeline):
    pipeline.to(torch.float64)
    assert {parameter.dtype for parameter in pipeline.adapters.parameters()} == {torch.float64}
    assert pipeline.unet.dtype == torch.float64
    pipeline.to("cpu", torch.float32)
    assert {parameter.dtype for parameter in pipeline.adapters.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.enable_attention_slicing("max"),
        lambda pipe: pipe.vae.enable_slicing(),
        lambda pipe: pipe.vae.enable_tiling(),
        lambda pipe: pipe.fuse_qkv_projections(),
    ],
    ids=["attention", "slicing", "tiling", "fused"],
)
def test_savings_change_nothing_that_can_be_seen(pipeline, change):
    options = {"subject_image": picture(0), **SETTINGS}
    before = pipeline("a cup", generator=seeded(), **options).images[0]
    change(pipeline)
    after = pipeline("a cup", generator=seeded(), **options).images[0]
    assert np.abs(array(before) - array(after)).max() <= 1


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("accelerate", lambda pipe: pipe.enable_model_cpu_offload()),
        ("accelerate", lambda pipe: pipe.enable_sequential_cpu_offload()),
        ("xformers", lambda pipe: pipe.enable_xformers_memory_efficient_attention()),
    ],
    ids=["offload", "sequential", "xformers"],
)
def test_what_is_not_installed_is_said_as_diffusers_says_it(pipeline, tiny_folder, module, call):
    if find_spec(module):
        pytest.skip(f"{module} is installed")
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with pytest.raises(ImportError, match=module) as theirs:
        call(StableDiffusionPipeline.from_pretrained(tiny_folder, **options))
    with pytest.raises(ImportError, match=module) as ours:
        call(pipeline)
    assert str(ours.value) == str(theirs.value)
    assert pipeline("a cup", picture(0), **SETTINGS).images  # as usable as before


def test_offloaded_networks_make_the_same_image(pipeline):
    pytest.importorskip("accelerate")
    before = pipeline("a cup", picture(0), generator=seeded(), **SETTINGS).images[0]
    pipeline.enable_model_cpu_offload(device="cpu")
    after = pipeline("a cup", picture(0), generator=seeded(), **SETTINGS).images[0]
    assert np.abs(array(before) - array(after)).max() <= 1


def test_adapters_go_where_offloaded_networks_run(pipeline):
    """A network that accelerate offloads says by this attribute where it will run."""
    for network in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        network._hf_hook = SimpleNamespace(execution_device=torch.device("meta"))
    pipeline._generator(SamplerConfig(loops=LoopConfig(stop="fixed")))
    assert {parameter.device.type for parameter in pipeline.adapters.parameters()} == {"meta"}


def test_a_sampler_counts_unless_something_else_is_said(pipeline):
    sampler = SamplerConfig(num_steps=4, solver="dpmpp_2m", loops=LoopConfig(stop="fixed", num_loops=2))
    made = pipeline("a cup", picture(0), sampler=sampler, num_inference_steps=5, generator=seeded())
    assert made.samples[0].num_loops == 2
    changed = pipeline._sampler(sampler, 5, None, None, None)
    assert changed == sampler.model_copy(update={"num_steps": 5})


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ConfigurationError, match="no such folder"):
        EZIGenPipeline.from_pretrained(str(tmp_path / "nothing"))


@pytest.mark.parametrize("zeros", [True, False])
def test_stable_diffusion_xl(xl_folder, tmp_path, zeros):
    folder = shutil.copytree(xl_folder, tmp_path / "xl")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": zeros}))
    card = folder / "adapter" / "card.json"  # the index is part of the model's fingerprint
    card.write_text(json.dumps(json.loads(card.read_text()) | {"base_fingerprint": ""}))
    pipeline = EZIGenPipeline.from_pretrained(folder)
    seed = int(torch.randint(0, 2**62, (), generator=seeded()))
    sampler = SamplerConfig(num_steps=5, guidance_scale=4.0, loops=LoopConfig(stop="fixed", num_loops=1))
    model = ModelConfig(model=str(folder), adapter=str(folder / "adapter"))
    wanted = load_generator(model, sampler).generate([request(0, prompt="a photo of a cup", seed=seed)])[0]
    made = pipeline("a photo of a cup", picture(0), "cup", generator=seeded(), sampler=sampler)
    assert made.images[0].tobytes() == wanted.image.tobytes()
    pipeline.to(torch.float16)
    assert (pipeline.unet.dtype, pipeline.vae.dtype) == (torch.float16, torch.float32)
