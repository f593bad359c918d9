"""Stable Diffusion XL: two text encoders, pooled texts and sizes; and SD2.1 with velocity prediction."""

import copy
import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from torch.nn import functional

from ezigen.adapters import attach_adapters, import_checkpoint, load_adapter
from ezigen.config import ConfigurationError, TrainingConfig
from ezigen.diffusion import NoiseSource
from ezigen.models import (
    TextCondition,
    call_unet,
    decode_latents,
    encode_pictures,
    encode_prompts,
    load_stack,
    model_fingerprint,
    tokenize_prompts,
)
from ezigen.sampling import Generator
from ezigen.sampling.denoiser import Conditions, Denoiser, plan_steps
from ezigen.subject import SubjectEncoder, encode_latents
from ezigen.training import Conditioner, Learner, draw, pair_loss, without_dropout
from tests.ezigen.test_sampling import array, request, sampler
from tests.ezigen.training_batches import CAPTIONS, make_batch
from tests.tiny import SCHEDULER, XL_POOLED, XL_WIDTH_2, build_tiny_stack, tiny_xl_unet


@pytest.fixture(scope="module")
def pipeline(xl_folder):
    made = diffusers.StableDiffusionXLPipeline.from_pretrained(xl_folder, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def folder(xl_folder, tmp_path):
    """A copy to break."""
    return shutil.copytree(xl_folder, tmp_path / "model")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def refusal(model):
    with pytest.raises(ConfigurationError) as error:
        load_stack(str(model), device="cpu")
    return str(error.value)


def draw_latents(stack, prompt, negative, seed, **setting):
    """The latents that text alone gives, before anything becomes 8-bit."""
    denoiser = Denoiser(stack, None, sampler(mode="text_only", **setting), NoiseSource())
    conditions = Conditions(encode_prompts(stack, [prompt]), encode_prompts(stack, [negative]), (seed,))
    noise = NoiseSource().batch([seed], "initial", 0, 0, stack.latent_shape)
    with torch.no_grad():
        *_, last = denoiser.run(noise, conditions, plan_steps(stack.schedule.timesteps(10)), None)
    return noise, last.latents


# --- texts ---


def test_prompts_equal_the_pipeline(xl_stack, pipeline):
    prompts = ["a photo of a cup on the beach", "", "xyzzy, 42!"]
    tokens, _, pooled, _ = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    found = encode_prompts(xl_stack, prompts)
    assert found.tokens.shape == (3, 16, 32 + XL_WIDTH_2)
    assert found.pooled.shape == (3, XL_POOLED)
    assert torch.allclose(found.tokens, tokens, atol=1e-6)
    assert torch.allclose(found.pooled, pooled, atol=1e-6)


def test_no_text_is_zeros_unless_the_model_says_otherwise(xl_stack, folder, pipeline):
    text = encode_prompts(xl_stack, ["a cup", None, ""])
    _, tokens, _, pooled = pipeline.encode_prompt("a cup", device="cpu", negative_prompt=None)
    assert torch.equal(text.tokens[1:2], tokens)
    assert torch.equal(text.pooled[1:2], pooled)
    assert not text.tokens[1].any()
    assert text.tokens[2].any()
    change(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    other = load_stack(str(folder), device="cpu")
    text = encode_prompts(other, [None, ""])
    assert torch.equal(text.tokens[0], text.tokens[1])
    assert text.tokens[0].any()
    assert other.fingerprint != xl_stack.fingerprint  # other images, so another model


def test_each_tokenizer_pads_in_its_own_way(xl_stack):
    ids = tokenize_prompts(xl_stack, ["a cup"]).input_ids
    first, second = ids.chunk(2, dim=1)
    assert ids.shape == (1, 32)
    assert torch.equal(first[:, :4], second[:, :4])
    assert set(first[0, 4:].tolist()) == {xl_stack.tokenizer.pad_token_id}
    assert set(second[0, 4:].tolist()) == {xl_stack.tokenizer_2.pad_token_id}
    assert xl_stack.tokenizer.pad_token_id != xl_stack.tokenizer_2.pad_token_id


# --- images ---


@pytest.mark.parametrize(("negative", "guidance_scale"), [("", 5.0), ("dark blur", 5.0), ("", 1.0)])
def test_text_only_equals_the_pipeline(xl_stack, pipeline, negative, guidance_scale):
    prompt, setting = "a photo of a cup on the beach", {"num_steps": 10, "guidance_scale": guidance_scale}
    noise, latents = draw_latents(xl_stack, prompt, negative or None, 3, **setting)
    options = {"num_inference_steps": 10, "guidance_scale": guidance_scale, "negative_prompt": negative or None}
    size = {"height": 32, "width": 32}
    theirs = pipeline(prompt, latents=noise, output_type="latent", **options, **size).images
    assert torch.allclose(latents, theirs, atol=1e-4)
    shown = pipeline(prompt, latents=noise, output_type="pt", **options, **size).images[0]
    assert torch.allclose((decode_latents(xl_stack, latents)[0] / 2 + 0.5).clamp(0, 1), shown, atol=1e-4)
    # And what a user gets, for whom an empty negative prompt is none.
    item = request(3, prompt=prompt, negative_prompt=negative)
    sample = Generator(xl_stack, None, None, sampler(mode="text_only", **setting)).generate([item])[0]
    assert np.abs(array(sample.image) - (shown * 255).round().permute(1, 2, 0).numpy()).max() <= 1


def test_sizes_follow_the_latents(xl_stack, pipeline):
    """A picture of another size than the model's, twice as wide as high."""
    latents, t = torch.randn(2, 4, 6, 12), torch.tensor([500, 20])
    text = encode_prompts(xl_stack, ["a cup", "a lamp"])
    projected = {"text_encoder_projection_dim": XL_POOLED}
    sizes = pipeline._get_add_time_ids((24, 48), (0, 0), (24, 48), torch.float32, **projected).repeat(2, 1)
    added = {"text_embeds": text.pooled, "time_ids": sizes}
    with torch.no_grad():
        theirs = pipeline.unet(latents, t, text.tokens, added_cond_kwargs=added).sample
        ours = call_unet(xl_stack.unet, latents, t, text, px_per_latent=xl_stack.px_per_latent)
        squared = call_unet(xl_stack.unet, latents, t, text, px_per_latent=8)
    assert torch.equal(ours, theirs)
    assert not torch.allclose(squared, theirs, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_both_predictions_of_sd21_equal_the_pipeline(tmp_path, prediction):
    """SD2.1 with 768 px is the same networks, larger, with velocity prediction."""
    folder = build_tiny_stack(tmp_path / "model")
    change(folder / "scheduler" / "scheduler_config.json", **(SCHEDULER | {"prediction_type": prediction}))
    change(folder / "unet" / "config.json", sample_size=12)
    stack = load_stack(str(folder), device="cpu")
    assert (stack.image_size_px, stack.latent_shape) == (48, (4, 12, 12))
    noise, latents = draw_latents(stack, "a red chair", "dark blur", 1, num_steps=10, guidance_scale=5.0)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 10, "guidance_scale": 5.0, "negative_prompt": "dark blur"}
    wanted = theirs("a red chair", latents=noise, output_type="latent", **options).images
    assert torch.allclose(latents, wanted, atol=1e-4)


@pytest.mark.parametrize(("force_upcast", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_the_vae_is_in_fp32_where_it_overflows_in_fp16(folder, force_upcast, dtype):
    change(folder / "vae" / "config.json", force_upcast=force_upcast)
    stack = load_stack(str(folder), device="cpu", dtype="fp16")
    assert stack.vae.dtype == dtype
    assert {network.dtype for network in (stack.unet, *stack.text_networks)} == {torch.float16}
    latents = encode_pictures(stack, torch.zeros(1, 3, 32, 32))
    assert torch.isfinite(decode_latents(stack, latents)).all()


def test_the_vae_of_other_models_stays_in_fp16(tiny_folder):
    assert load_stack(str(tiny_folder), device="cpu", dtype="fp16").vae.dtype == torch.float16


# --- subjects and adapters ---


def test_idle_adapters_equal_the_stock_unet_bit_for_bit(xl_stack):
    latents, t = torch.randn(2, 4, 8, 8), torch.tensor([500, 20])
    text = encode_prompts(xl_stack, ["a cup", None])
    stock, unet = xl_stack.unet, copy.deepcopy(xl_stack.unet)
    adapters = attach_adapters(unet)
    assert len(adapters) == 1 * 2 + 2 + 2 * 2  # one attention down, the middle, two up, with two blocks each
    with torch.no_grad():
        one, other = (call_unet(each, latents, t, text, px_per_latent=4) for each in (stock, unet))
    assert torch.equal(one, other)


def test_subject_features_are_what_the_norms_put_out(xl_stack, pipeline):
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    found = SubjectEncoder(xl_stack).encode(pictures, ["cup", "red chair"])
    latents = pipeline.vae.encode(pictures).latent_dist.mode() * pipeline.vae.config.scaling_factor
    noise = NoiseSource().batch([0, 0], "subject", 0, 0, latents.shape[1:])
    t = torch.tensor([1, 1])
    noisy = pipeline.scheduler.add_noise(latents, noise, t)
    prompts = ["a photo of a cup.", "a photo of a red chair."]
    tokens, _, pooled, _ = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    wanted = encode_latents(pipeline.unet, noisy, t, TextCondition(tokens, pooled), px_per_latent=4)
    for name, values in wanted.tokens.items():
        torch.testing.assert_close(found.tokens[name], values, rtol=1e-4, atol=1e-4)
    assert "up_blocks.0.attentions.1.transformer_blocks.1" in found.tokens


def test_the_subject_is_in_the_picture(xl_stack, xl_adapters):
    """Full injection with another subject is another picture, with the same one the same."""
    made = Generator(xl_stack, xl_adapters, None, sampler(mode="full_injection"))
    first, again, other = (
        made.generate([request(0, subjects=request(index).subjects)])[0].image.tobytes() for index in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_adapters_of_another_model_are_refused(xl_stack, tiny_stack, tiny_folder, xl_folder, tmp_path):
    unet = copy.deepcopy(xl_stack.unet)
    adapters = attach_adapters(unet)
    with pytest.raises(ConfigurationError, match="pass the model it was trained on"):
        load_adapter(adapters, tiny_folder / "adapter", base_fingerprint=xl_stack.fingerprint)
    with pytest.raises(ConfigurationError, match=r"belong to no adapter of this model.*of another model"):
        load_adapter(adapters, tiny_folder / "adapter", base_fingerprint=None)
    from safetensors.torch import save_file

    ours = attach_adapters(copy.deepcopy(tiny_stack.unet))
    tensors = {f"{name}.adapter_norm.weight": ours[name].norm.weight.detach() for name in ours.names}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigurationError, match="tensors are missing"):
        import_checkpoint(tmp_path, adapters)
    with pytest.raises(ConfigurationError, match="pass the model it was trained on"):
        load_adapter(ours, xl_folder / "adapter", base_fingerprint=tiny_stack.fingerprint)


# --- training ---


def test_a_train_step_moves_adapters_alone(xl_stack):
    stack = replace(xl_stack, unet=copy.deepcopy(xl_stack.unet))
    batch = make_batch(stack, [0, 1, 2], policy="recompute", stored_text=False)
    networks = {"unet": stack.unet, "vae": stack.vae, "first": stack.text_encoder, "second": stack.text_encoder_2}
    before = {(key, name): t.clone() for key, net in networks.items() for name, t in net.state_dict().items()}
    # Text dropout as the paper trains XL, gradient checkpointing as it needs.
    config = TrainingConfig(text_dropout=0.3, gradient_checkpointing=True)
    learner = Learner(stack, config, num_steps=2, t_sub=1)
    start = {name: tensor.detach().clone() for name, tensor in learner.adapters.tensors().items()}
    report = learner.train_step([batch], num_samples=3)
    learner.close()
    assert report.loss > 0
    assert not [name for name, tensor in learner.adapters.tensors().items() if torch.equal(tensor, start[name])]
    for key, network in networks.items():
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[key, name])


def test_the_loss_is_that_of_the_pipelines_unet(xl_stack, pipeline):
    """With adapters that change nothing. The second caption is dropped: zeros stand for it."""
    stack = replace(xl_stack, unet=copy.deepcopy(xl_stack.unet))
    batch = make_batch(stack, [0, 1], stored_text=False)
    adapters = attach_adapters(stack.unet)
    with torch.no_grad():
        for name in adapters.names:
            adapters[name].to_out.weight.zero_()
            adapters[name].to_out.bias.zero_()
    draws = replace(without_dropout(draw(TrainingConfig(), batch)), keeps_text=torch.tensor([True, False]))
    conditions = Conditioner(stack, t_sub=1).conditions(batch, draws)
    found = pair_loss(adapters, stack, batch, draws, conditions).per_sample
    tokens, none, pooled, none_pooled = pipeline.encode_prompt(CAPTIONS[0], device="cpu")
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).repeat(2, 1)
    added = {"text_embeds": torch.cat([pooled, none_pooled]), "time_ids": sizes}
    latents = batch.mean + batch.variance.sqrt() * draws.posterior_noise
    noisy = pipeline.scheduler.add_noise(latents, draws.noise, draws.timesteps)
    with torch.no_grad():
        text = torch.cat([tokens, none])
        output = pipeline.unet(noisy, draws.timesteps, text, added_cond_kwargs=added).sample
    wanted = functional.mse_loss(output, draws.noise, reduction="none").mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dropped", [False, True])
def test_stored_texts_and_token_ids_mean_the_same(xl_stack, dropped):
    stored, encoded = make_batch(xl_stack, [0, 1]), make_batch(xl_stack, [0, 1], stored_text=False)
    draws = without_dropout(draw(TrainingConfig(), stored))
    if dropped:
        draws = replace(draws, keeps_text=torch.tensor([True, False]))
    conditioner = Conditioner(xl_stack, t_sub=1)
    first, second = conditioner.conditions(stored, draws).text, conditioner.conditions(encoded, draws).text
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.pooled, second.pooled)
    assert first.tokens[1].any() != dropped  # as guidance sees no text
    assert first.pooled[1].any() != dropped


# --- folders ---


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "tokenizer_2"])
def test_half_of_xl_is_refused_by_part(folder, component):
    shutil.rmtree(folder / component)
    message = refusal(folder)
    assert f"{component}/" in message
    assert "stable-diffusion-xl-base-1.0" in message


def test_a_second_text_encoder_beside_another_unet_is_refused(tiny_folder, folder):
    shutil.rmtree(folder / "unet")
    shutil.copytree(tiny_folder / "unet", folder / "unet")
    assert "mixes two models" in refusal(folder)


def test_the_refiner_is_refused_by_name(folder):
    """One text encoder and five numbers: the last is an aesthetic score."""
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    tiny_xl_unet(
        cross_attention_dim=XL_WIDTH_2, projection_class_embeddings_input_dim=XL_POOLED + 5 * 8
    ).save_pretrained(folder / "unet")
    message = refusal(folder)
    assert "refiner" in message
    assert "stable-diffusion-xl-base-1.0" in message


def test_an_inpainting_unet_is_refused(folder):
    tiny_xl_unet(in_channels=9).save_pretrained(folder / "unet")
    assert "inpainting" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "values", "expected"),
    [
        ("unet", {"addition_embed_type": "text_image"}, "'text_image' beside the timestep"),
        ("unet", {"projection_class_embeddings_input_dim": 99}, "mixes two models"),
        ("vae", {"latents_mean": [0.0] * 4}, "latents_mean"),
    ],
)
def test_other_relatives_are_refused(folder, part, values, expected):
    change(folder / part / "config.json", **values)
    assert expected in refusal(folder)


@pytest.mark.parametrize("path", ["text_encoder_2/model.safetensors", "tokenizer_2/tokenizer.json", "model_index.json"])
def test_every_part_counts(folder, path):
    before = model_fingerprint(str(folder))
    content = (folder / path).read_bytes()
    (folder / path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if "index" not in path else content + b" ")
    assert model_fingerprint(str(folder)) != before
