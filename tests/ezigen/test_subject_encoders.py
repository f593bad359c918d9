"""Subject encoders that learn in the place of the frozen UNet (paper, Tables 4 and 5)."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from ezigen.adapters import (
    AdapterCard,
    adapter_fingerprint,
    add_subject_encoder,
    attach_adapters,
    detach_adapters,
    load_adapter,
    read_card,
    save_adapter,
)
from ezigen.adapters.encoders import locate_image_encoder
from ezigen.config import ConfigurationError, ItemError, OptimizerConfig, SamplerConfig, TrainingConfig
from ezigen.engine import Engine, EngineLimits, Networks
from ezigen.models import call_unet, load_stack
from ezigen.models.text import TextCondition
from ezigen.pipeline import EZIGenPipeline
from ezigen.sampling import Generator, attach_to_stack
from ezigen.subject import SubjectEncoder, SubjectFeatures, TrainedUNet
from ezigen.training import Conditioner, Learner, draw, pair_loss, without_dropout
from tests.ezigen.test_sampling import picture, request
from tests.ezigen.training_batches import make_batch, random

LEARNED = ("trained", "dino", "clip")
FOLDERS = {"dino": "dinov2", "clip": "clip"}
NAMES = ("adapter.safetensors", "optimizer.safetensors", "ema.safetensors")
SAMPLER = SamplerConfig(mode="full_injection", num_steps=3, guidance_scale=3.0)
ADAM = OptimizerConfig(kind="adam", lr=1e-2)
"""Without weight decay only gradients move weights."""


@pytest.fixture
def stack(tiny_stack):
    yield tiny_stack
    tiny_stack.unet.disable_gradient_checkpointing()
    detach_adapters(tiny_stack.unet)


@pytest.fixture
def learn(stack, tiny_folder):
    """Learners on the tiny stack, one at a time."""

    def make(kind, initial=None, **changes):
        detach_adapters(stack.unet)
        return Learner(stack, settings(kind, tiny_folder, **changes), num_steps=8, t_sub=1, initial=initial)

    return make


@pytest.fixture
def attach(stack, tiny_folder):
    """Adapters with a subject encoder on the tiny stack."""

    def make(kind, *, blocks=(), on=stack):
        detach_adapters(on.unet)
        adapters = attach_adapters(on.unet, blocks=blocks)
        add_subject_encoder(adapters, on.unet, kind, location=str(tiny_folder / FOLDERS.get(kind, "")))
        return adapters

    return make


def settings(kind, folder, **changes):
    location = {"subject_image_encoder": str(folder / FOLDERS[kind])} if kind in FOLDERS else {}
    return TrainingConfig(**{"subject_encoder": kind, "optimizer": ADAM, **location, **changes})


def snapshot(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_same_tokens(one, other):
    assert list(one.tokens) == list(other.tokens)
    assert not changed(one.tokens, other.tokens)


def train(learner, batches):
    return [learner.train_step(batch.split(1), num_samples=len(batch)) for batch in batches]


def images(stack, adapters, **changes):
    made = Generator(stack, adapters, None, SAMPLER.model_copy(update=changes), num_slots=2)
    return [sample.image.tobytes() for sample in made.generate([request(0), request(1)])]


# --- training ---


@pytest.mark.parametrize("kind", LEARNED)
def test_a_step_moves_the_encoder_and_the_adapters_and_nothing_else(learn, stack, kind):
    frozen = {f"{n}.{key}": net for n in ("unet", "vae", "text_encoder") for key, net in _state(stack, n).items()}
    before = snapshot(frozen)
    learner = learn(kind, subject_dropout=0.0, adapter_blocks=("mid", "up") if kind == "clip" else ())
    encoder = learner.adapters.subject_encoder
    weights, everything = snapshot(learner.adapters.tensors()), snapshot(dict(encoder.named_parameters()))
    train(learner, [make_batch(stack, [0, 1], policy="recompute", slots=[[True, True], [True, False]])])
    moved = changed(weights, learner.adapters.tensors())
    assert moved == set(weights)
    assert len(encoder.tensors()) == sum(name.startswith("subject_encoder.") for name in moved)
    rest = {name for name in everything if not encoder.get_parameter(name).requires_grad}
    assert changed(everything, dict(encoder.named_parameters())) == set(everything) - rest
    assert bool(rest) == (kind == "trained")
    learner.close()
    assert not changed(
        before, {f"{n}.{k}": t for n in ("unet", "vae", "text_encoder") for k, t in _state(stack, n).items()}
    )


def _state(stack, network):
    tensors = getattr(stack, network).state_dict()
    return {name.replace(".stock.", "."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("trained", {"gradient_checkpointing": True, "subject_timestep": "adaptive"}),
        ("dino", {"text_dropout": 0.3, "mask_padding": False, "max_subjects": 2}),
        ("clip", {"adapter_blocks": ("up",)}),
    ],
)
def test_a_resumed_run_equals_an_undisturbed_one_bit_by_bit(learn, stack, tmp_path, kind, changes):
    """Also where some batches have no subject at all."""
    config = {"subject_dropout": 0.7, "optimizer": OptimizerConfig(lr=1e-3, ema_decay=0.9), **changes}
    kept = {True: [], False: []}
    for number in range(8):
        batch = make_batch(stack, [2 * number, 2 * number + 1], policy="recompute")
        kept[bool(draw(TrainingConfig(**config), batch).keeps_subject.any())].append(batch)
    batches = [kept[True][0], kept[False][0], kept[False][1], kept[True][1]]
    whole = learn(kind, **config)
    reports = train(whole, batches)
    whole.save(tmp_path / "whole")
    first = learn(kind, **config)
    head = train(first, batches[:2])
    first.save(tmp_path / "checkpoint")
    second = learn(kind, **config)
    second.load(tmp_path / "checkpoint")
    assert head + train(second, batches[2:]) == reports
    second.save(tmp_path / "resumed")
    for name in NAMES:
        one, other = (load_file(tmp_path / folder / name) for folder in ("whole", "resumed"))
        assert set(one) == set(other)
        assert not changed(one, other)
        assert any(key.startswith("subject_encoder.") for key in one)


def test_checkpointed_gradients_are_the_same(learn, stack):
    batch = make_batch(stack, [0, 1], policy="recompute")
    weights = []
    for checkpointed in (False, True):
        learner = learn("trained", gradient_checkpointing=checkpointed)
        train(learner, [batch])
        weights.append(snapshot(learner.adapters.tensors()))
        learner.close()
    assert not changed(*weights)


@pytest.mark.parametrize("kind", LEARNED)
def test_without_subjects_gradients_are_zero_not_missing(attach, stack, kind):
    """Weights of which one process has a gradient and another has none could not be shared."""
    adapters = attach(kind)
    batch = make_batch(stack, [0, 1], policy="recompute")
    draws = replace(draw(TrainingConfig(), batch), keeps_subject=torch.tensor([False, False]))
    conditions = Conditioner(stack, t_sub=1, learned=adapters.subject_encoder).conditions(batch, draws)
    assert {tokens.shape[1] for tokens in conditions.subject.tokens.values()} == {0}
    pair_loss(adapters, stack, batch, draws, conditions).loss.backward()
    assert all(not tensor.grad.any() for tensor in adapters.subject_encoder.tensors().values())


def test_an_untrained_copy_gives_the_frozen_features(attach, stack, xl_stack):
    """Bit by bit, at any timestep, of pictures and of stored latents, so that the first loss is the same."""
    pictures = random((2, 3, 32, 32), "pictures").clamp(-1, 1)
    for networks in (stack, xl_stack):
        expected = SubjectEncoder(networks).encode(pictures, ["cup", "dog"], t_sub=37)
        with torch.no_grad():
            learned = attach("trained", on=networks).subject_encoder
            found = SubjectEncoder(networks, learned=learned).encode(pictures, ["cup", "dog"], t_sub=37)
        assert_same_tokens(found, expected)
        detach_adapters(networks.unet)


def test_the_first_loss_of_a_trained_copy_is_that_of_the_frozen_unet(learn, stack):
    batch = make_batch(stack, [0, 1], policy="recompute")
    for timestep in ("store", "adaptive"):
        frozen, trained = (
            learn(kind, subject_timestep=timestep).held_out_loss([batch]) for kind in ("frozen", "trained")
        )
        assert frozen == trained


def test_gradients_of_the_copy_equal_those_of_a_plain_unet(attach, stack, tiny_folder):
    """Against hooks and autograd written out here, on a UNet that was loaded by itself."""
    from diffusers import UNet2DConditionModel

    adapters = attach("trained", blocks=("mid", "up_blocks.0.*"))
    encoder = adapters.subject_encoder
    batch = make_batch(stack, [0, 1], policy="recompute")
    draws = without_dropout(draw(TrainingConfig(), batch))
    conditions = Conditioner(stack, t_sub=1, learned=encoder).conditions(batch, draws)
    pair_loss(adapters, stack, batch, draws, conditions).loss.backward()

    plain = UNet2DConditionModel.from_pretrained(tiny_folder / "unet").eval()
    tokens = {}
    for name in adapters.names:
        norm = plain.get_submodule(name).norm1
        norm.register_forward_hook(lambda _module, _args, output, name=name: tokens.update({name: output}))
    t, noise = torch.ones(2, dtype=torch.long), _subject_noise(stack)
    noisy = stack.schedule.add_noise(batch.subject_latents[:, 0], noise.expand(2, -1, -1, -1), t)
    plain(noisy, t, _class_texts(stack, batch))
    loss = pair_loss(adapters, stack, batch, draws, replace(conditions, subject=SubjectFeatures(tokens))).loss
    parameters = dict(plain.named_parameters())
    expected = dict(
        zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True)
    )
    assert {name for name, gradient in expected.items() if gradient is not None} == set(encoder.tensors())
    for name, tensor in encoder.tensors().items():
        torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-3, atol=1e-8)
    assert sum(float(tensor.grad.abs().max()) > 0 for tensor in encoder.tensors().values()) > 50


def _subject_noise(stack):
    from ezigen.diffusion import NoiseSource

    return NoiseSource().batch([0], "subject", 0, 0, stack.latent_shape)


def _class_texts(stack, batch):
    from ezigen.models import encode_prompts

    return encode_prompts(stack, [f"a photo of a {names[0]}." for names in batch.subject_classes]).tokens


def test_gradients_of_the_copy_equal_differences(stack):
    """Along a random direction through all weights, in fp64."""
    names = ("mid_block.attentions.0.transformer_blocks.0",)
    encoder = TrainedUNet(stack.unet, names).double()
    latents, text = random((1, 4, 8, 8), "x").double(), TextCondition(random((1, 3, 32), "text").double())
    weights = random((1, 16, 64), "weights").double()

    def value():
        tokens = encoder(latents, torch.tensor([401]), text, px_per_latent=4).tokens[names[0]]
        return (tokens * weights).sum()

    parameters = list(encoder.tensors().values())
    gradients = torch.autograd.grad(value(), parameters)
    direction = [random(tuple(p.shape), "direction", number).double() for number, p in enumerate(parameters)]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    ends = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for parameter, change in zip(parameters, direction, strict=True):
                parameter.add_(change, alpha=step)
            ends.append(value())
    assert float(slope) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("kind", ["dino", "clip"])
def test_projected_tokens_equal_the_librarys_and_the_formula(attach, stack, tiny_folder, kind):
    from transformers import CLIPVisionModel, Dinov2Model
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    adapters = attach(kind)
    with torch.no_grad():  # other weights than those they begin with
        for number, tensor in enumerate(adapters.subject_encoder.tensors().values()):
            tensor.add_(0.1 * random(tuple(tensor.shape), number))
    subject = picture(3, size=(32, 32)).rgb
    mean, std = {
        "dino": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        "clip": (CLIPImageProcessorPil.image_mean, CLIPImageProcessorPil.image_std),
    }[kind]
    pixels = torch.tensor(list(subject.tobytes())).view(32, 32, 3).permute(2, 0, 1) / 255
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    network = {"dino": Dinov2Model, "clip": CLIPVisionModel}[kind].from_pretrained(tiny_folder / FOLDERS[kind]).eval()
    with torch.no_grad():
        patches = network(normalised[None]).last_hidden_state[:, 1:]
        found = SubjectEncoder(stack, learned=adapters.subject_encoder).encode(2 * pixels[None] - 1, ["cup"])
    weights = adapters.tensors()
    assert set(found.tokens) == set(adapters.names)
    for name, tokens in found.tokens.items():
        linear, norm = (f"subject_encoder.{name}.{part}" for part in ("linear", "norm"))
        projected = functional.linear(patches, weights[f"{linear}.weight"], weights[f"{linear}.bias"])
        scaled = (projected - projected.mean(-1, keepdim=True)) / (projected.var(-1, False, keepdim=True) + 1e-5).sqrt()
        expected = scaled * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)


def test_projectors_begin_with_the_scale_that_the_block_knows(attach, stack):
    """The layer norm is the block's own, and the map is drawn by the seed alone."""
    first, again = snapshot(attach("dino").tensors()), snapshot(attach("dino").tensors())
    assert not changed(first, again)
    detach_adapters(stack.unet)
    for name in (name for name in first if name.startswith("subject_encoder.") and ".norm." in name):
        _, block, kind = name.replace("subject_encoder.", "subject_encoder|").replace(".norm.", "|").split("|")
        assert torch.equal(first[name], getattr(stack.unet.get_submodule(block).norm1, kind))


def test_in_training_an_image_encoder_sees_what_the_vae_makes_of_stored_latents(attach, stack):
    from ezigen.models import decode_latents

    encoder = attach("dino").subject_encoder
    batch = make_batch(stack, [0, 1], policy="recompute", slots=[[True, True], [True, False]])
    draws = without_dropout(draw(TrainingConfig(), batch))
    with torch.no_grad():
        found = Conditioner(stack, t_sub=400, learned=encoder).conditions(batch, draws).subject
        expected = encoder(decode_latents(stack, batch.subject_latents[1, :1]))
    for name, tokens in expected.tokens.items():
        torch.testing.assert_close(found.tokens[name][1, :16], tokens[0], rtol=1e-4, atol=1e-4)
        assert found.mask[name].tolist() == [[True] * 32, [True] * 16 + [False] * 16]


@pytest.mark.parametrize("kind", LEARNED)
def test_blank_slots_are_encoded_by_what_learns_as_it_is_now(attach, stack, kind):
    adapters = attach(kind)
    batch = make_batch(stack, [0], policy="recompute", slots=[[True, False]])
    draws = without_dropout(draw(TrainingConfig(), batch))
    conditioner = Conditioner(stack, t_sub=1, padded_slots=2, learned=adapters.subject_encoder)
    white = torch.ones(1, 3, 32, 32)
    for _ in range(2):
        with torch.no_grad():
            found = conditioner.conditions(batch, draws).subject
            expected = SubjectEncoder(stack, learned=adapters.subject_encoder).encode(white, [""])
            for name, tokens in expected.tokens.items():
                assert torch.equal(found.tokens[name][:, tokens.shape[1] :], tokens)
            assert found.mask is None
            for tensor in adapters.subject_encoder.tensors().values():
                tensor.mul_(1.1)


@pytest.mark.parametrize("kind", LEARNED)
def test_in_bf16_weights_stay_in_fp32(tiny_folder, kind):
    """And samples are made with them as they will be used."""
    learner = Learner(
        load_stack(str(tiny_folder), device="cpu"),
        settings(kind, tiny_folder, precision="bf16", subject_dropout=0.0, adapter_blocks=("mid",)),
        num_steps=2,
        t_sub=1,
    )
    before = snapshot(learner.adapters.tensors())
    batch = make_batch(learner.stack, [0, 1], policy="recompute", dtype=torch.bfloat16)
    train(learner, [batch])
    assert changed(before, learner.adapters.tensors()) == set(before)
    assert {tensor.dtype for tensor in learner.adapters.tensors().values()} == {torch.float32}
    with learner.averaged_weights():
        assert {tensor.dtype for tensor in learner.adapters.tensors().values()} == {torch.bfloat16}
        assert len(images(learner.stack, learner.adapters)) == 2


# --- files and images ---


@pytest.mark.parametrize("kind", LEARNED)
def test_what_was_trained_makes_the_same_images_when_it_is_loaded(learn, stack, tiny_folder, tmp_path, kind):
    """By the sampler and by the engine, and its weights count: the frozen encoder makes other ones."""
    learner = learn(kind, adapter_blocks=("mid", "up"))
    train(learner, [make_batch(stack, [0, 1], policy="recompute")])
    card = learner.save_adapter(tmp_path, AdapterCard())
    assert (card.subject_encoder, card.num_parameters) == (kind, learner.adapters.num_parameters)
    assert card.num_parameters == sum(tensor.numel() for tensor in load_file(tmp_path / NAMES[0]).values())
    with learner.averaged_weights():
        expected = images(stack, learner.adapters)
    learner.close()
    adapters = attach_to_stack(stack, tmp_path).requires_grad_(False)
    assert adapters.subject_encoder_kind == kind
    assert images(stack, adapters) == expected
    engine = Engine(Networks(stack, adapters), SAMPLER, EngineLimits(num_slots=2))
    made = {ended.key: ended.sample.image.tobytes() for ended in engine.generate([request(0), request(1)])}
    assert [made["item-0"], made["item-1"]] == expected
    adapters.subject_encoder = None
    assert images(stack, adapters) != expected


def test_bootpigs_setting_at_every_timestep(attach, stack):
    """t_sub adaptive through a trained copy: the engine and the sampler agree, and another timestep shows."""
    adapters = attach("trained").requires_grad_(False)
    expected = images(stack, adapters, t_sub="adaptive")
    sampler = SAMPLER.model_copy(update={"t_sub": "adaptive"})
    engine = Engine(Networks(stack, adapters), sampler, EngineLimits(num_slots=2))
    made = {ended.key: ended.sample.image.tobytes() for ended in engine.generate([request(0), request(1)])}
    assert [made["item-0"], made["item-1"]] == expected
    assert images(stack, adapters) != expected


def test_foreground_tokens_of_an_image_encoder(attach, stack):
    """A mask chooses among its patches as it does among latents: 4 x 4 of them, of which the left half is touched."""
    from PIL import Image

    from ezigen.images import Picture
    from ezigen.sampling.subjects import encode_subject

    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    encoder = SubjectEncoder(stack, learned=attach("dino").subject_encoder)
    sampler = SamplerConfig(subject_tokens="foreground")
    features = encode_subject(encoder, Picture(picture(0, (32, 32)).rgb, mask), "cup", 32, sampler)
    assert all(m.view(4, 4).tolist() == [[True, True, False, False]] * 4 for m in features.mask.values())


def test_a_pipeline_of_diffusers_keeps_the_encoder(attach, stack, tiny_folder, tmp_path):
    save_adapter(attach("dino"), tmp_path / "dino", AdapterCard())
    options = {"sampler": SAMPLER, "output_type": "np"}
    made = []
    for folder, adapter in ((tiny_folder, str(tmp_path / "dino")), (tmp_path / "saved", "auto")):
        pipeline = EZIGenPipeline.from_pretrained(folder, adapter=adapter)
        assert pipeline.adapters.subject_encoder_kind == "dino"
        seeded = torch.Generator().manual_seed(0)
        made.append(pipeline("a cup on grass", picture(0).rgb, "cup", generator=seeded, **options).images)
        pipeline.save_pretrained(tmp_path / "saved")
    assert (made[0] == made[1]).all()


def test_frozen_says_nothing_new(stack, tmp_path):
    adapters = attach_adapters(stack.unet)
    assert {name.rsplit(".", 1)[0].rsplit(".", 1)[0] for name in adapters.tensors()} >= set(adapters.names)
    assert not [name for name in adapters.tensors() if name.startswith("subject_encoder")]
    assert adapters.num_parameters == sum(parameter.numel() for parameter in adapters.parameters())
    assert not {"subject_encoder", "subject_image_encoder"} & set(TrainingConfig().identity())
    digests = {settings(kind, tmp_path).digest() for kind in LEARNED} | {TrainingConfig(optimizer=ADAM).digest()}
    assert len(digests) == 4
    save_adapter(adapters, tmp_path, AdapterCard())
    before, card = adapter_fingerprint(str(tmp_path)), json.loads((tmp_path / "card.json").read_text())
    for name in ("subject_encoder", "image_encoder", "image_encoder_fingerprint"):  # as cards were
        del card[name]
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert read_card(tmp_path).subject_encoder == "frozen"
    assert adapter_fingerprint(str(tmp_path)) == before


def test_another_image_encoder_is_another_adapter(attach, tmp_path):
    card = save_adapter(attach("clip"), tmp_path, AdapterCard())
    before = adapter_fingerprint(str(tmp_path))
    changed_card = card.model_copy(update={"image_encoder_fingerprint": "f" * 32})
    (tmp_path / "card.json").write_text(changed_card.model_dump_json())
    assert adapter_fingerprint(str(tmp_path)) != before
    (tmp_path / "card.json").write_text(card.model_copy(update={"image_encoder": "elsewhere"}).model_dump_json())
    assert adapter_fingerprint(str(tmp_path)) == before


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject_encoder": "trained", "features": "stored"}, "trained needs features recompute or auto"),
        ({"subject_encoder": "dino", "subject_timestep": "adaptive"}, "dino knows no timestep"),
        ({"subject_encoder": "clip", "subject_timestep": "adaptive"}, "clip knows no timestep"),
        ({"subject_encoder": "trained", "subject_image_encoder": "mini"}, "is for subject_encoder dino or clip"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**changes)


def test_stored_features_are_refused(attach, stack):
    adapters = attach("trained")
    batch = make_batch(stack, [0])
    with pytest.raises(ConfigurationError, match="subject_encoder trained: the batch has features of the frozen UNet"):
        Conditioner(stack, t_sub=1, learned=adapters.subject_encoder).conditions(batch, draw(TrainingConfig(), batch))
    engine = Engine(Networks(stack, adapters), SAMPLER)
    known = SubjectFeatures({name: torch.zeros(1, 4, 32) for name in adapters.names})
    with pytest.raises(ItemError, match=r"item-0: features cannot be known before with an adapter whose .* is trained"):
        engine.add(request(0, features=(known,)))


@pytest.mark.parametrize("t_sub", [2, "adaptive"])
def test_a_timestep_of_an_image_encoder_is_refused(attach, stack, t_sub):
    adapters = attach("clip")
    sampler = SAMPLER.model_copy(update={"t_sub": t_sub})
    for make in (
        lambda: Generator(stack, adapters, None, sampler),
        lambda: Engine(Networks(stack, adapters), sampler),
    ):
        with pytest.raises(ConfigurationError, match=f"t_sub {t_sub}: the adapter encodes subjects by clip"):
            make()
    Engine(Networks(stack, adapters), sampler.model_copy(update={"mode": "text_only"}))


def test_an_adapter_is_attached_with_the_encoder_of_its_card(attach, stack, tmp_path):
    save_adapter(attach("trained"), tmp_path, AdapterCard())
    for kind in ("frozen", "dino"):
        with pytest.raises(ConfigurationError, match=f"subject_encoder trained, attached with {kind}"):
            load_adapter(attach(kind), tmp_path, base_fingerprint=None)


def test_another_or_missing_image_encoder_is_refused(attach, stack, tiny_folder, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_folder / "dinov2", folder)
    adapters = attach_adapters(stack.unet)
    add_subject_encoder(adapters, stack.unet, "dino", location=str(folder))
    save_adapter(adapters, tmp_path / "adapter", AdapterCard())
    detach_adapters(stack.unet)
    attach_to_stack(stack, tmp_path / "adapter")
    detach_adapters(stack.unet)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ConfigurationError, match=r"trained with the image encoder .* set image_encoder in its card"):
        attach_to_stack(stack, tmp_path / "adapter")
    detach_adapters(stack.unet)
    shutil.rmtree(folder)
    with pytest.raises(ConfigurationError, match=r"subject encoder dino: .*no such folder.* set image_encoder in its"):
        attach_to_stack(stack, tmp_path / "adapter")
    attach_adapters(stack.unet)  # nothing was left attached


def test_an_image_encoder_of_the_other_kind_is_refused(learn, stack, tiny_folder):
    for kind, folder in (("dino", "clip"), ("clip", "dinov2")):
        with pytest.raises(ConfigurationError, match=f"subject encoder {kind}: .* name a folder or hub id of a {kind}"):
            learn(kind, subject_image_encoder=str(tiny_folder / folder))
        attach_adapters(stack.unet)


def test_where_auto_is():
    assert locate_image_encoder("dino", "auto", "mini") == locate_image_encoder("clip", "auto", "mini") == "mini"
    assert locate_image_encoder("dino", "auto", "sd21") == "facebook/dino-vits16"
    assert locate_image_encoder("clip", "auto", "sd21") == "openai/clip-vit-base-patch32"
    assert locate_image_encoder("clip", "here", "mini") == "here"


def test_an_initial_adapter_has_the_same_encoder_or_the_frozen_one(learn, attach, stack, tmp_path):
    save_adapter(attach("frozen"), tmp_path / "frozen", AdapterCard())
    adapters = attach("trained")
    with torch.no_grad():
        for tensor in adapters.tensors().values():
            tensor.add_(0.01)
    save_adapter(adapters, tmp_path / "trained", AdapterCard())
    expected = snapshot(adapters.tensors())
    assert not changed(expected, learn("trained", initial=tmp_path / "trained").adapters.tensors())
    begun = learn("trained", initial=tmp_path / "frozen").adapters.tensors()
    assert changed(expected, begun) == set(expected)
    with pytest.raises(ConfigurationError, match=r"trained with subject_encoder trained; set training.subject_encoder"):
        learn("frozen", initial=tmp_path / "trained")


def test_a_checkpoint_of_another_image_encoder_is_refused(learn, stack, tiny_folder, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_folder / "dinov2", folder)
    learn("dino", subject_image_encoder=str(folder)).save(tmp_path / "checkpoint")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ConfigurationError, match="made with image_encoder"):
        learn("dino", subject_image_encoder=str(folder)).load(tmp_path / "checkpoint")


def test_a_copy_is_called_as_the_unet_is(stack):
    """What a copy predicts is what the UNet predicts, so that nothing of it is missing."""
    encoder = TrainedUNet(stack.unet, tuple(attach_adapters(stack.unet).names))
    given = random((1, 4, 8, 8), 0), torch.tensor([3]), TextCondition(random((1, 5, 32), 1))
    with torch.no_grad():
        assert torch.equal(
            call_unet(encoder.unet, *given, px_per_latent=4), call_unet(stack.unet, *given, px_per_latent=4)
        )
