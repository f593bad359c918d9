"""Another model draws the scene: pipelines of four kinds, regions, and what is said of wrong ones."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from pydantic import ValidationError

from ezigen.config import ConfigurationError, ErrorCode, ItemError, ModelConfig, SamplerConfig, SketchConfig
from ezigen.engine import Engine, EngineLimits, Networks
from ezigen.images import Picture
from ezigen.images.region import bounding_box, find_strong, keep_main_parts, otsu, to_region
from ezigen.models import encode_prompts, load_segmenter, transformer_blocks
from ezigen.sketch import (
    Sketcher,
    SketchingEngine,
    check_sketch,
    load_sketch_model,
    load_sketcher,
    sketch_fingerprint,
    word_attention,
)
from ezigen.sketch.attention import find_word, record_text_attention
from tests.ezigen.test_sampling import array, make, picture, request, sampler
from tests.tiny_pipelines import build_tiny_flux, build_tiny_sam, build_tiny_sd3, build_tiny_sdxl

CPU = torch.device("cpu")
BUILDERS = {"sdxl": build_tiny_sdxl, "sd3": build_tiny_sd3, "flux": build_tiny_flux}
PROMPT = "a photo of a cup on the beach"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory, tiny_folder):
    """Folders by kind, written when they are asked for first."""
    root, made = tmp_path_factory.mktemp("pipelines"), {"sd": tiny_folder}

    def folder(kind):
        if kind not in made:
            made[kind] = BUILDERS[kind](root / kind)
        return made[kind]

    return folder


def drawer(folder, **changes):
    config = SketchConfig(**{"model": str(folder), "draw_size_px": 32, "num_steps": 2, **changes})
    return load_sketch_model(config, device=CPU, dtype=torch.float32)


def sketcher(stack, folder, **changes):
    config = SketchConfig(**{"model": str(folder), "draw_size_px": 32, "num_steps": 2, **changes})
    return Sketcher(drawer(folder), stack, config)


def model_of(folder, **sketch):
    return ModelConfig(
        model=str(folder),
        adapter=str(folder / "adapter"),
        image_encoder=str(folder / "dinov2"),
        device="cpu",
        sketch=SketchConfig(model=str(folder), draw_size_px=32, num_steps=2, **sketch),
    )


# ---- drawing


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
def test_a_picture_has_the_size_asked_for_and_depends_on_its_seed_alone(pipelines, kind):
    model = drawer(pipelines(kind))
    first, other = (model.draw(PROMPT, "", seed, (40, 32)).rgb for seed in (5, 6))
    assert first.size == other.size == (40, 32)
    assert first.mode == "RGB"
    assert (array(model.draw(PROMPT, "", 5, (40, 32)).rgb) == array(first)).all()
    assert (array(first) != array(other)).mean() > 0.2


def test_it_draws_what_the_pipeline_itself_draws(tiny_folder):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    options = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    expected = pipeline(PROMPT, negative_prompt="dark", generator=torch.Generator().manual_seed(7), **options).images[0]
    drawn = drawer(tiny_folder, guidance_scale=3.0).draw(PROMPT, "dark", 7, (32, 32)).rgb
    assert (array(drawn) == array(expected)).all()
    assert (array(drawn) != array(drawer(tiny_folder).draw(PROMPT, "", 7, (32, 32)).rgb)).any()


def test_the_size_that_a_model_was_trained_for_is_its_own(pipelines):
    assert drawer(pipelines("sd"), draw_size_px=0).size_px == 32
    assert drawer(pipelines("sd3"), draw_size_px=0).size_px == 32


def test_a_fast_model_takes_few_steps_and_no_guidance(tmp_path, pipelines, tiny_folder):
    turbo = tmp_path / "tiny-turbo"
    turbo.symlink_to(tiny_folder)
    fast = {"num_inference_steps": 4, "guidance_scale": 0.0}
    assert drawer(turbo, num_steps=0)._options == fast
    assert drawer(pipelines("flux"), num_steps=0)._options == fast
    assert drawer(build_tiny_flux(tmp_path / "dev", guidance_embeds=True), num_steps=0)._options == {}
    assert drawer(tiny_folder, num_steps=0)._options == {}
    assert drawer(turbo, num_steps=1, guidance_scale=2.0)._options == {
        "num_inference_steps": 1,
        "guidance_scale": 2.0,
    }


def test_a_negative_prompt_that_has_no_effect_is_said_once(pipelines, caplog):
    model = drawer(pipelines("flux"))
    pictures = [array(model.draw(PROMPT, negative, 1, (32, 32)).rgb) for negative in ("", "dark", "dark")]
    assert (pictures[0] == pictures[1]).all()
    assert caplog.text.count("no use for negative prompts") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda f: (f / "model_index.json").write_text("[]"), "model_index.json is broken"),
        (lambda f: shutil.rmtree(f / "vae"), "vae is missing"),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").rename(f / "unet" / "model.bin"),
            "only model.bin, a pickle, which is never loaded",
        ),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99), "download it again"),
        (lambda f: _edit_index(f, _class_name="AudioLDMPipeline"), "does not load"),
        (lambda f: _edit_index(f, _class_name=["my_code", "MyPipeline"]), "code of its own, which is never run"),
    ],
)
def test_an_unsuitable_model_is_refused(tmp_path, tiny_folder, change, message):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    change(folder)
    with pytest.raises(ConfigurationError, match=message):
        drawer(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_code_in_the_folder_of_a_part_is_not_run(tmp_path, tiny_folder, part):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / part / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    _edit_index(folder, **{part: ["own", "Own"]})
    with pytest.raises(ConfigurationError, match="does not load"):
        drawer(folder)
    assert not (tmp_path / "ran").exists()


def _edit_index(folder, **changes):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_missing_model_says_which_option_is_wrong():
    with pytest.raises(ConfigurationError, match=r"/no/such: no such folder.*--sketch-model"):
        drawer("/no/such")


def test_settings_that_contradict_each_other(tiny_folder, tiny_stack):
    with pytest.raises(ValidationError, match="region sam needs sam_model"):
        SketchConfig(model="mini", region="sam")
    with pytest.raises(ConfigurationError, match="mode text_only"):
        check_sketch(SketchConfig(model="mini"), SamplerConfig(mode="text_only"))
    with pytest.raises(ConfigurationError, match=r"sketch\.model"):
        load_sketcher(ModelConfig(model=str(tiny_folder)), SamplerConfig(), tiny_stack)


def test_the_fingerprint_is_that_of_all_that_matters_and_of_no_path(tmp_path, tiny_folder):
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_folder, copy)
    config, plain = SketchConfig(model=str(tiny_folder)), SamplerConfig()
    own = sketch_fingerprint(config, plain)
    assert sketch_fingerprint(config.model_copy(update={"model": str(copy)}), plain) == own
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("0.012", "0.013"))
    changed = [
        (SketchConfig(model=str(copy)), plain),
        (SketchConfig(model=str(tiny_folder), num_steps=3), plain),
        (SketchConfig(model=str(tiny_folder), region="all"), plain),
        (config, SamplerConfig(edit={"guidance_scale": 3.0})),
    ]
    assert len({own, *(sketch_fingerprint(*pair) for pair in changed)}) == 5
    assert sketch_fingerprint(SketchConfig(), plain) == ""


# ---- where the subject goes


def test_attention_is_that_of_the_library(tiny_stack):
    """The library's own attention code, which can be asked for its probabilities, in every block of the way up."""
    text = encode_prompts(tiny_stack, [PROMPT]).tokens
    latents, seen = torch.randn(1, 4, 8, 6), {}

    def look(name):
        def hook(layer, args, kwargs, output):
            tokens = layer.to_q(args[0]), layer.to_k(kwargs["encoder_hidden_states"])
            query, key = (layer.head_to_batch_dim(one) for one in tokens)
            scores = layer.get_attention_scores(query, key)
            seen[name] = scores.unflatten(0, (1, layer.heads)).mean(1)

        return hook

    blocks = {n: b for n, b in transformer_blocks(tiny_stack.unet).items() if n.startswith("up_blocks")}
    handles = [b.attn2.register_forward_hook(look(n), with_kwargs=True) for n, b in blocks.items()]
    with torch.no_grad(), record_text_attention(tiny_stack.unet) as found:
        tiny_stack.unet(latents, torch.tensor([300]), text)
    for handle in handles:
        handle.remove()
    assert set(found) == set(seen) == set(blocks)
    for name, probabilities in found.items():
        torch.testing.assert_close(probabilities, seen[name])
        assert probabilities.sum(-1).allclose(torch.ones(()))


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (24, 56)])
def test_attention_has_the_size_of_the_picture(tiny_stack, size):
    strength = word_attention(tiny_stack, picture(1, size).rgb, PROMPT, "cup")
    assert tuple(strength.shape) == size[::-1]
    assert 0 < strength.min() <= strength.max() < 1


def test_a_word_is_found_where_both_text_encoders_read_it(xl_stack):
    """Of two encoders' tokens, one after the other, the positions are those of either."""
    (position,) = find_word(xl_stack, "a photo of a cup on the beach", "cup")
    assert position < encode_prompts(xl_stack, ["a cup"]).tokens.shape[1]
    red = Image.new("RGB", (32, 32), "red")
    assert word_attention(xl_stack, red, "a photo of a cup on the beach", "cup").shape == (32, 32)


def test_a_word_is_found_wherever_it_stands(tiny_stack):
    assert find_word(tiny_stack, PROMPT, "cup") == [5]
    assert find_word(tiny_stack, "a photo of a Red Cup under a red cup.", "red cup") == [5, 6, 9, 10]
    assert len(find_word(tiny_stack, "a photo of a teapot", "teapot")) > 1  # spelled
    for prompt, word in [("on the beach", "cup"), (PROMPT, ""), ("the " * 30 + "cup", "cup")]:
        with pytest.raises(ItemError, match="write it there as it is") as caught:
            find_word(tiny_stack, prompt, word)
        assert caught.value.code is ErrorCode.ROW_INVALID


def test_otsu_is_the_best_of_all_thresholds():
    values = np.random.default_rng(0).gamma(2.0, size=(40, 40))
    values[5:20, 8:30] += 4

    def within(threshold):
        parts = [values[values > threshold], values[values <= threshold]]
        return sum(part.var() * part.size for part in parts if part.size)

    best = min(within(threshold) for threshold in np.unique(values)[:-1])
    assert within(otsu(values)) == pytest.approx(best, rel=2e-3)


def test_a_region_is_what_stands_out_without_holes_and_crumbs():
    strength = np.full((60, 80), 0.1)
    strength[20:40, 10:40] = 0.5
    strength[28:32, 20:24] = 0.1  # a hole
    strength[2:4, 70:72] = 0.6  # a crumb
    strength[45:55, 50:70] = 0.4  # a second part
    expected = np.zeros((60, 80), bool)
    expected[20:40, 10:40] = expected[45:55, 50:70] = True
    found = find_strong(strength)
    assert (found == expected).all()
    assert bounding_box(found) == (10, 20, 70, 55)


@pytest.mark.parametrize("strength", [np.ones((8, 8)), np.zeros((8, 8)), np.linspace(1, 1.3, 64).reshape(8, 8)])
def test_nothing_stands_out_where_all_is_much_the_same(strength):
    assert find_strong(strength) is None


def test_a_region_grows_on_every_side():
    found = np.zeros((100, 100), bool)
    found[40:60, 40:60] = True
    grown = np.asarray(to_region(found, 0.05)) == 255
    assert bounding_box(grown) == (35, 35, 65, 65)
    assert (np.asarray(to_region(found)) == found * 255).all()
    assert keep_main_parts(found).sum() == found.sum()


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (200, 100)])
def test_sam_outlines_in_the_size_of_the_picture(tmp_path, size):
    segmenter = load_segmenter(str(build_tiny_sam(tmp_path)), device=CPU)
    strength = np.zeros(size[::-1])
    strength[10:30, 10:30] = 1
    outlined = segmenter.outline(picture(0, size).rgb, strength > 0, strength)
    assert outlined.shape == size[::-1]
    assert outlined.dtype == bool


def test_a_sam_that_is_none_is_refused(tmp_path, tiny_folder):
    with pytest.raises(ConfigurationError, match=r"config\.json is missing"):
        load_segmenter(str(tiny_folder), device=CPU)
    with pytest.raises(ConfigurationError, match="does not load"):
        load_segmenter(str(tiny_folder / "dinov2"), device=CPU)


# ---- requests


def test_a_subject_is_transferred_into_the_drawn_picture_and_nowhere_else(tiny_stack, adapters, dinov2, pipelines):
    drawing = sketcher(tiny_stack, pipelines("sd3"))
    mask = Image.new("L", (32, 32), 0)
    ImageDraw.Draw(mask).rectangle((8, 8, 20, 24), fill=255)
    edit = drawing.to_edit(request(1, prompt=PROMPT), mask)
    (sample,) = make(tiny_stack, adapters, dinov2, edit={"feather": 0.0}).generate([edit])
    changed = (array(sample.image) != array(edit.edit.source.rgb)).any(axis=-1)
    inside = array(mask) > 0
    assert changed[inside].mean() > 0.9
    assert not changed[~inside].any()


def test_equal_scenes_are_drawn_once_and_edits_are_left_alone(tiny_stack, tiny_folder):
    drawing = sketcher(tiny_stack, tiny_folder, region="all")
    one, other = (drawing.to_edit(request(index, prompt=PROMPT, seed=9)) for index in range(2))
    assert one.edit.source is other.edit.source
    assert one.edit.mask is None
    assert drawing.to_edit(one) is one
    assert drawing.draw(request(0, prompt=PROMPT, seed=8)) is not one.edit.source


def test_where_nothing_stands_out_all_may_change(tiny_stack, tiny_folder, caplog):
    """Random weights attend to every word everywhere."""
    edit = sketcher(tiny_stack, tiny_folder).to_edit(request(0, prompt=PROMPT, subject_class="cup"))
    assert edit.edit.mask is None
    assert "may change" in caplog.text


def test_images_of_the_size_wanted(tiny_stack, tiny_folder):
    drawing = sketcher(tiny_stack, tiny_folder, size_px=50)
    assert drawing.draw(request(0, prompt=PROMPT)).rgb.size == (50, 50)


# ---- the engine


def test_the_engine_draws_before_it_transfers(tiny_stack, adapters, dinov2, tiny_folder):
    wanted = sampler(loops={"stop": "fixed", "num_loops": 1})
    engine = Engine(Networks(tiny_stack, adapters, dinov2), wanted, EngineLimits(num_slots=2))
    drawing = sketcher(tiny_stack, tiny_folder)
    sketching = SketchingEngine(engine, drawing)
    requests = [request(index, prompt=PROMPT, subject_class="cup") for index in range(3)]
    own = replace(drawing.to_edit(requests[0]), key="own")
    nowhere = request(8, prompt="on the beach", subject_class="lamp")
    for one in (*requests, own):
        sketching.add(one)
    with pytest.raises(ItemError, match="lamp"):
        sketching.add(nowhere)
    with pytest.raises(ValueError, match="is here already"):
        sketching.add(requests[0])
    with pytest.raises(ItemError, match="subject picture"):
        sketching.add(replace(requests[0], key="bare", subjects=()))
    assert sketching.num_held == 4
    sketching.drain()
    ended = {}
    while sketching.busy:
        ended.update({one.key: one for one in sketching.step()})
    assert {key: one.error for key, one in ended.items()} == dict.fromkeys([*(r.key for r in requests), "own"])
    expected = Engine(Networks(tiny_stack, adapters, dinov2), wanted, EngineLimits(num_slots=2))
    for one in expected.generate([drawing.to_edit(r) for r in requests]):
        assert (array(one.sample.image) == array(ended[one.key].sample.image)).all()
        assert ended[one.key].sample.sketch is not None
    assert ended["own"].sample.sketch is None
    assert sketching.counters["drawn"] == 3
    assert sketching.counters["seconds.draw"] > 0


def test_the_engine_gives_back_what_is_not_drawn_and_survives_a_scene_that_fails(
    tiny_stack, adapters, dinov2, tiny_folder
):
    engine = Engine(Networks(tiny_stack, adapters, dinov2), sampler(), EngineLimits(num_slots=2))

    class Broken(Sketcher):
        def draw(self, one) -> Picture:
            if one.seed == 13:
                raise RuntimeError("the pen is empty")
            return super().draw(one)

    config = SketchConfig(model=str(tiny_folder))
    sketching = SketchingEngine(engine, Broken(drawer(tiny_folder), tiny_stack, config))
    requests = [request(index, prompt=PROMPT, subject_class="cup", seed=13 - index) for index in range(4)]
    for one in requests:
        sketching.add(one)
    (failed,) = sketching.step()
    assert failed.error.code is ErrorCode.GENERATION_FAILED
    assert "the pen is empty" in failed.error.message
    assert sketching.step() == []
    assert sketching.withdraw(2) == [requests[3].key, requests[2].key]
    assert sketching.withdraw(5) == [requests[1].key]
    assert not sketching.busy
    assert sketching.num_held == 0
    sketching.add(requests[1])  # again


def test_from_configuration_to_images(tiny_folder):
    from ezigen.sketch import load_sketching_engine

    engine = load_sketching_engine(model_of(tiny_folder), sampler(), EngineLimits(num_slots=1))
    engine.add(request(0, prompt=PROMPT, subject_class="cup"))
    ended = []
    while engine.busy:
        ended += engine.step()
    assert ended[0].sample.image.size == (32, 32)
    with pytest.raises(ConfigurationError, match="text_only"):
        load_sketching_engine(model_of(tiny_folder), SamplerConfig(mode="text_only"))
