"""Other methods through diffusers: plain pipelines and IP-Adapter, held against the library's own calls."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from ezigen.baselines import BaselineRequest, baseline_fingerprint, find_baseline, load_baseline
from ezigen.config import BaselineConfig, ConfigurationError, ErrorCode, ItemError
from ezigen.images import Picture
from tests.ezigen.test_sampling import array, picture
from tests.tiny_pipelines import build_tiny_flux, build_tiny_ip_adapter, build_tiny_sd3

CPU = torch.device("cpu")
PROMPTS = ("a photo of a cup on the beach", "a red chair in the snow", "a lamp in the forest")


@pytest.fixture(scope="module")
def ip_adapter(tmp_path_factory, tiny_stack):
    return build_tiny_ip_adapter(tmp_path_factory.mktemp("ip-adapter"), tiny_stack.unet)


@pytest.fixture
def copy(ip_adapter, tmp_path):
    """The folder of the IP-Adapter, to be spoiled."""
    return shutil.copytree(ip_adapter, tmp_path / "ip-adapter")


def baseline(folder, ip_adapter="", batch_size=0, **changes):
    config = BaselineConfig(**{"pipeline": str(folder), "ip_adapter": str(ip_adapter), "num_steps": 2, **changes})
    return load_baseline(config, device=CPU, dtype=torch.float32, batch_size=batch_size)


def requests(*pictures):
    """As many as there are prompts; the first one gets the first picture, and so on in turns."""
    return [
        BaselineRequest(prompt, 7 + index, (pictures[index % len(pictures)],) if pictures else ())
        for index, prompt in enumerate(PROMPTS)
    ]


def library(folder, ip_adapter=None):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if ip_adapter is not None:
        pipeline.load_ip_adapter(str(ip_adapter), subfolder="models", weight_name="ip-adapter_sd15.safetensors")
    return pipeline


# ---- images


def test_a_plain_pipeline_draws_what_the_library_draws_and_sees_no_subject(tiny_folder):
    made = baseline(tiny_folder, guidance_scale=3.0, negative_prompt="dark").make(requests(picture(1)))
    pipeline = library(tiny_folder)
    for index, (image, prompt) in enumerate(zip(made, PROMPTS, strict=True)):
        expected = pipeline(
            prompt,
            negative_prompt="dark",
            generator=torch.Generator().manual_seed(7 + index),
            num_inference_steps=2,
            guidance_scale=3.0,
        ).images[0]
        assert (array(image) == array(expected)).all()
    others = baseline(tiny_folder, guidance_scale=3.0, negative_prompt="dark").make(requests(picture(2)))
    assert [image.tobytes() for image in others] == [image.tobytes() for image in made]
    assert len({image.tobytes() for image in made}) == 3


@pytest.mark.parametrize("num_pictures", [1, 2])
def test_an_ip_adapter_shows_what_the_librarys_own_shows(tiny_folder, ip_adapter, num_pictures):
    pictures = tuple(picture(seed, (40, 24)) for seed in range(num_pictures))
    request = BaselineRequest(PROMPTS[0], 7, pictures)
    (image,) = baseline(tiny_folder, ip_adapter, ip_adapter_scale=0.8).make([request])
    pipeline = library(tiny_folder, ip_adapter)
    pipeline.set_ip_adapter_scale(0.8)
    expected = pipeline(
        PROMPTS[0],
        ip_adapter_image=[[one.rgb for one in pictures]],
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=2,
    ).images[0]
    assert (array(image) == array(expected)).all()


def test_an_ip_adapter_depends_on_the_picture_and_on_its_weight(tiny_folder, ip_adapter):
    red, noise = Picture(Image.new("RGB", (32, 32), "red")), picture(3)
    shown = [baseline(tiny_folder, ip_adapter).make(requests(one))[0] for one in (red, noise)]
    (weak,) = baseline(tiny_folder, ip_adapter, ip_adapter_scale=0.0).make(requests(red)[:1])
    plain = baseline(tiny_folder).make(requests())[0]
    assert (array(shown[0]) != array(shown[1])).mean() > 0.1
    assert (array(weak) == array(plain)).mean() > 0.99  # the same numbers, added up in another order


def test_an_image_does_not_depend_on_its_batch(tiny_folder, ip_adapter):
    """Two subjects in turns: each image gets its own picture and its own noise, whatever is made beside it."""
    wanted = requests(picture(1), Picture(Image.new("RGB", (32, 32), "red")))
    for adapter in ("", ip_adapter):
        alone = [baseline(tiny_folder, adapter, batch_size=1).make([one])[0] for one in wanted]
        for size in (2, 8):
            together = baseline(tiny_folder, adapter, batch_size=size).make(wanted)
            assert all(np.abs(array(one) - array(other)).max() <= 1 for one, other in zip(alone, together, strict=True))
    assert (array(alone[0]) != array(alone[1])).any()


def test_an_ip_adapter_for_xl_is_found_and_drawn(xl_folder, xl_stack, tmp_path):
    folder = build_tiny_ip_adapter(tmp_path, xl_stack.unet, is_xl=True)
    made = baseline(xl_folder, folder).make(requests(picture(1))[:1])
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_ip_adapter(str(folder), subfolder="sdxl_models", weight_name="ip-adapter_sdxl.safetensors")
    pipeline.set_ip_adapter_scale(0.6)
    expected = pipeline(
        PROMPTS[0],
        ip_adapter_image=picture(1).rgb,
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=2,
    ).images[0]
    assert (array(made[0]) == array(expected)).all()


def test_pipelines_of_other_kinds_draw_batches(tmp_path):
    for name, build in (("sd3", build_tiny_sd3), ("flux", build_tiny_flux)):
        made = baseline(build(tmp_path / name), batch_size=3).make(requests())
        assert {image.size for image in made} == {(made[0].width,) * 2}
        assert len({image.tobytes() for image in made}) == 3


def test_a_request_that_fails_spoils_no_other(tiny_folder, caplog):
    wanted = requests()
    wanted[1] = BaselineRequest(PROMPTS[1], 2**70)  # no seed of torch's
    made = baseline(tiny_folder, batch_size=3).make(wanted)
    assert isinstance(made[1], ItemError)
    assert made[1].code is ErrorCode.GENERATION_FAILED
    expected = baseline(tiny_folder).make(requests())
    assert np.abs(array(made[0]) - array(expected[0])).max() <= 1
    assert np.abs(array(made[2]) - array(expected[2])).max() <= 1


def test_a_batch_that_is_too_large_is_halved_for_good(tiny_folder):
    class Small(StableDiffusionPipeline):
        """A device with memory for two."""

        sizes = ()

        def __call__(self, prompt, **options):
            Small.sizes += (len(prompt),)
            if len(prompt) > 2:
                raise torch.OutOfMemoryError("too many")
            return super().__call__(prompt, **options)

    one = baseline(tiny_folder, batch_size=4)
    one._pipeline.__class__ = Small
    made = one.make([*requests(), *requests()])
    assert all(isinstance(image, Image.Image) for image in made)
    assert Small.sizes == (4, 2, 2, 2)
    assert one.batch_size == 2


# ---- files


def test_the_fingerprint_names_files_and_settings_and_no_path(tiny_folder, ip_adapter, tmp_path):
    plain = BaselineConfig(pipeline=str(tiny_folder))
    shown = BaselineConfig(pipeline=str(tiny_folder), ip_adapter=str(ip_adapter))
    model, adapter = (shutil.copytree(one, tmp_path / one.name) for one in (tiny_folder, ip_adapter))
    moved = BaselineConfig(pipeline=str(model), ip_adapter=str(adapter))
    assert baseline_fingerprint(moved) == baseline_fingerprint(shown)
    file = BaselineConfig(pipeline=str(model), ip_adapter=str(adapter / "models" / "ip-adapter_sd15.safetensors"))
    assert baseline_fingerprint(file) == baseline_fingerprint(shown)
    changes = {"num_steps": 3, "guidance_scale": 2.0, "negative_prompt": "dark"}
    others = [plain, shown, *(plain.model_copy(update={name: value}) for name, value in changes.items())]
    others.append(shown.model_copy(update={"ip_adapter_scale": 1.0}))
    prints = {baseline_fingerprint(one) for one in others}
    assert len(prints) == len(others)
    weights = adapter / "models" / "image_encoder" / "model.safetensors"
    encoder = CLIPVisionModelWithProjection.from_pretrained(weights.parent)
    encoder.visual_projection.weight.data += 1
    encoder.save_pretrained(weights.parent)
    assert baseline_fingerprint(moved) not in prints
    assert baseline_fingerprint(plain.model_copy(update={"ip_adapter_scale": 1.0})) == baseline_fingerprint(plain)


def _narrow_encoder(folder):
    config = folder / "models" / "image_encoder" / "config.json"
    config.write_text(config.read_text().replace('"projection_dim": 16', '"projection_dim": 8'))


def _to_pickle(file):
    file.rename(file.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: _to_pickle(f / "models" / "ip-adapter_sd15.safetensors"),
            r"found only ip-adapter_sd15\.bin, a pickle, which is never loaded; .*hf download h94/IP-Adapter",
        ),
        (
            lambda f: _to_pickle(f / "models" / "image_encoder" / "model.safetensors"),
            r"image_encoder has no safetensors, found only model\.bin, a pickle, which is never loaded",
        ),
        (lambda f: shutil.rmtree(f / "models"), "found nothing"),
        (lambda f: shutil.rmtree(f / "models" / "image_encoder"), r"image_encoder/config\.json is missing"),
        (
            lambda f: (f / "models" / "ip-adapter_sd15.safetensors").write_bytes(b"version https://git-lfs.github.com"),
            "Git LFS pointer",
        ),
        (_narrow_encoder, r"a projection_dim of 16, but .* has 8"),
    ],
)
def test_an_unsuitable_ip_adapter_is_refused(tiny_folder, copy, spoil, message):
    spoil(copy)
    with pytest.raises(ConfigurationError, match=message):
        find_baseline(BaselineConfig(pipeline=str(tiny_folder), ip_adapter=str(copy)))


def test_a_pickle_that_is_named_itself_is_refused(tiny_folder, copy):
    config = BaselineConfig(pipeline=str(tiny_folder), ip_adapter=str(copy / "models" / "ip-adapter_sd15.bin"))
    with pytest.raises(ConfigurationError, match=r"a pickle, which is never loaded; .*--baseline NAME=PIPELINE,ip"):
        find_baseline(config)


def test_an_ip_adapter_of_another_pipeline_is_refused(xl_folder, ip_adapter, tmp_path):
    file = ip_adapter / "models" / "ip-adapter_sd15.safetensors"
    with pytest.raises(ConfigurationError, match=r"texts of 32 channels, those of .* have 56"):
        find_baseline(BaselineConfig(pipeline=str(xl_folder), ip_adapter=str(file)))
    with pytest.raises(ConfigurationError, match=r"sdxl_models/ip-adapter_sdxl\.safetensors is missing"):
        find_baseline(BaselineConfig(pipeline=str(xl_folder), ip_adapter=str(ip_adapter)))
    with pytest.raises(ConfigurationError, match="has no UNet"):
        find_baseline(BaselineConfig(pipeline=str(build_tiny_sd3(tmp_path)), ip_adapter=str(file)))


def test_weights_that_are_no_ip_adapter_are_refused(tiny_folder, ip_adapter, copy):
    from safetensors.torch import load_file, save_file

    file = copy / "models" / "ip-adapter_sd15.safetensors"
    weights = load_file(file)
    faces = {name: tensor for name, tensor in weights.items() if not name.startswith("image_proj")}
    save_file({**faces, "image_proj.proj.0.weight": torch.zeros(8, 512)}, file)
    with pytest.raises(ConfigurationError, match="is no IP-Adapter that takes pictures"):
        find_baseline(BaselineConfig(pipeline=str(tiny_folder), ip_adapter=str(copy)))
    del weights["ip_adapter.3.to_v_ip.weight"]
    save_file(weights, file)
    with pytest.raises(ConfigurationError, match="it does not load into"):
        baseline(tiny_folder, copy)


def test_an_xl_file_may_take_the_encoder_of_the_other_folder(xl_folder, xl_stack, ip_adapter, tmp_path):
    """As ip-adapter_sdxl_vit-h does: the one beside it has another width."""
    folder = build_tiny_ip_adapter(tmp_path, xl_stack.unet, is_xl=True)
    shutil.copytree(ip_adapter / "models" / "image_encoder", folder / "models" / "image_encoder")
    config = folder / "sdxl_models" / "image_encoder" / "config.json"
    config.write_text(config.read_text().replace('"projection_dim": 16', '"projection_dim": 8'))
    found = find_baseline(BaselineConfig(pipeline=str(xl_folder), ip_adapter=str(folder)))
    assert found.ip_adapter.encoder == folder / "models" / "image_encoder"


def test_missing_folders_say_which_option_is_wrong(tiny_folder):
    with pytest.raises(ConfigurationError, match=r"/no/such: no such folder.*--baseline NAME=stable"):
        find_baseline(BaselineConfig(pipeline="/no/such"))
    with pytest.raises(ConfigurationError, match=r"/no/such: no such folder.*--baseline NAME=PIPELINE,IP-Adapter"):
        find_baseline(BaselineConfig(pipeline=str(tiny_folder), ip_adapter="/no/such"))


def test_a_negative_prompt_without_a_use_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="has no use for a negative_prompt"):
        baseline(build_tiny_flux(tmp_path), negative_prompt="dark")


def test_a_safety_checker_is_left_out(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    index = folder / "model_index.json"
    checker = '{\n  "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],'
    index.write_text(index.read_text().replace("{", checker, 1))
    made = baseline(folder).make(requests())
    expected = baseline(tiny_folder).make(requests())
    assert [image.tobytes() for image in made] == [image.tobytes() for image in expected]
