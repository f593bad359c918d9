"""The objective: equal to a plain reference, random as configured, the same for stored and recomputed features."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from ezigen.adapters import attach_adapters, detach_adapters
from ezigen.config import ConfigurationError, OptimizerConfig, SourceConfig, TrainingConfig
from ezigen.models import TextCondition, encode_prompts, transformer_blocks
from ezigen.subject import SubjectEncoder, SubjectFeatures
from ezigen.training import Conditioner, Draws, TrainBatch, draw, learning_rate, pair_loss, without_dropout
from ezigen.training.loss import loss_weights
from tests.ezigen.training_batches import CAPTIONS, make_batch
from tests.tiny import SCHEDULER


@pytest.fixture
def attached(tiny_stack):
    """Trainable adapters on the tiny stack, away from where they start: copies would hide a missing term."""
    adapters = []

    def attach(**options):
        adapters.append(attach_adapters(tiny_stack.unet, **options))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in adapters[0].parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return adapters[0]

    yield attach
    detach_adapters(tiny_stack.unet)


def with_prediction(stack, prediction):
    return replace(stack, schedule=replace(stack.schedule, prediction_type=prediction))


# --- the reference: an unwrapped UNet with hooks, and the formulas of the papers written down once more ---


def reference_alpha_bar():
    start, end = SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5
    return torch.cumprod(1 - torch.linspace(start, end, 1000) ** 2, dim=0)


def reference_adapter(parameters, name, heads, hidden, features, row, *, extra_residual):
    """a of METHOD's Eq. 3-4 for one sample: h1 (T, C) and its existing subject tokens."""
    own = {key.removeprefix(f"{name}."): value for key, value in parameters.items() if key.startswith(f"{name}.")}
    u = functional.layer_norm(hidden, hidden.shape[-1:], own["norm.weight"], own["norm.bias"])
    tokens = features.tokens[name][row]
    if features.mask is not None:
        tokens = tokens[features.mask[name][row]]
    c = torch.cat([u, own["subject_weight"] * tokens])
    result = []
    for head in range(heads):
        part = slice(head * u.shape[1] // heads, (head + 1) * u.shape[1] // heads)
        q, k, v = (x @ own[f"to_{key}.weight"][part].T for x, key in ((u, "q"), (c, "k"), (c, "v")))
        scores = torch.exp(q @ k.T / math.sqrt(q.shape[1]))
        result.append(scores / scores.sum(dim=1, keepdim=True) @ v)
    a = torch.cat(result, dim=1) @ own["to_out.weight"].T + own["to_out.bias"]
    return a + u if extra_residual else a


def reference_loss(unet, parameters, batch, draws, text, features, *, prediction, gamma, extra_residual):
    """Weighted mean squared error; the adapters' output is added to what self-attention puts out."""
    inputs, handles = {}, []
    for name, block in transformer_blocks(unet).items():

        def remember(_module, args, name=name):
            inputs[name] = args[0]

        def add(module, _args, output, name=name):
            h1 = inputs[name] + output
            change = [
                reference_adapter(parameters, name, module.heads, h1[row], features, row, extra_residual=extra_residual)
                for row in range(len(h1))
            ]
            return output + torch.stack(change)

        handles += [block.register_forward_pre_hook(remember), block.attn1.register_forward_hook(add)]
    alpha_bar = reference_alpha_bar()[draws.timesteps][:, None, None, None]
    latents = batch.mean + batch.variance.sqrt() * draws.posterior_noise
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * draws.noise
    target = {
        "epsilon": draws.noise,
        "v_prediction": alpha_bar.sqrt() * draws.noise - (1 - alpha_bar).sqrt() * latents,
    }[prediction]
    try:
        output = unet(noisy, draws.timesteps, encoder_hidden_states=text).sample
    finally:
        for handle in handles:
            handle.remove()
    snr = (alpha_bar / (1 - alpha_bar)).flatten()
    weights = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1) if gamma else torch.ones_like(snr)
    return (weights * (output - target).square().mean(dim=(1, 2, 3))).mean()


@pytest.mark.parametrize(
    ("prediction", "gamma", "extra_residual"), [("epsilon", 0.0, False), ("v_prediction", 5.0, True)]
)
def test_gradients_equal_those_of_a_plain_reference(tiny_stack, attached, prediction, gamma, extra_residual):
    plain, stack = copy.deepcopy(tiny_stack.unet), with_prediction(tiny_stack, prediction)
    batch = make_batch(stack, [0, 1, 2], slots=[[True, True], [True, False], [True, True]])
    kept = {"keeps_subject": torch.tensor([True, True, False]), "keeps_text": torch.tensor([True, False, True])}
    draws = replace(draw(TrainingConfig(), batch), **kept)
    adapters = attached(extra_residual=extra_residual)
    conditions = Conditioner(stack, t_sub=1).conditions(batch, draws)
    terms = pair_loss(adapters, stack, batch, draws, conditions, min_snr_gamma=gamma)
    terms.loss.backward()

    parameters = {name: value.detach().clone().requires_grad_() for name, value in adapters.tensors().items()}
    text = batch.text.tokens.clone()
    text[1] = encode_prompts(stack, [""]).tokens[0]
    features = batch.features.keep(torch.tensor([True, True, False]))
    expected = reference_loss(
        plain, parameters, batch, draws, text, features, prediction=prediction, gamma=gamma,
        extra_residual=extra_residual,
    )  # fmt: skip
    expected.backward()
    torch.testing.assert_close(terms.loss, expected, rtol=1e-5, atol=0)
    for name, tensor in adapters.tensors().items():
        # Sums in another order: fp32 roundings, which grow where terms cancel (the one number w has 2e-4).
        scale = parameters[name].grad.abs().max()
        assert scale > 0, name
        assert (tensor.grad - parameters[name].grad).abs().max() < 1e-3 * scale, name
    assert all(parameter.grad is None for parameter in tiny_stack.unet.parameters())


# --- what is random ---


def positions_only(num_samples, timesteps=(0, 999)):
    nothing = torch.zeros(num_samples, 1, 1, 1)
    return TrainBatch(
        positions=torch.arange(num_samples),
        mean=nothing,
        variance=nothing,
        text=None,
        token_ids=torch.zeros(num_samples, 1, dtype=torch.long),
        slots=torch.ones(num_samples, 1, dtype=torch.bool),
        timesteps=torch.tensor(timesteps).expand(num_samples, 2),
        sources=torch.zeros(num_samples, dtype=torch.long),
        features=None,
        subject_latents=torch.zeros(num_samples, 1, 1, 1, 1),
        subject_classes=(("cup",),) * num_samples,
    )


@pytest.mark.parametrize(("subject", "text"), [(0.2, 0.05), (0.8, 0.3)])
def test_dropouts_occur_as_often_as_configured_and_independently(subject, text):
    count = 20_000
    draws = draw(TrainingConfig(subject_dropout=subject, text_dropout=text), positions_only(count))
    lacks_subject, lacks_text = ~draws.keeps_subject, ~draws.keeps_text
    for found, rate in ((lacks_subject, subject), (lacks_text, text), (lacks_subject & lacks_text, subject * text)):
        deviation = math.sqrt(rate * (1 - rate) / count)
        assert abs(found.float().mean().item() - rate) < 4 * deviation


def test_dropouts_of_none_and_all_are_exact():
    batch = positions_only(2000)
    draws = draw(TrainingConfig(subject_dropout=0.0, text_dropout=1.0), batch)
    assert draws.keeps_subject.all()
    assert not draws.keeps_text.any()
    measured = without_dropout(draws)
    assert measured.keeps_text.all()
    assert measured.noise is draws.noise


def test_timesteps_are_uniform_over_each_samples_range():
    count = 20_000
    everywhere = draw(TrainingConfig(), positions_only(count)).timesteps
    shares = torch.histc(everywhere.float(), bins=10, min=0, max=1000) / count
    assert ((shares - 0.1).abs() < 4 * math.sqrt(0.09 / count)).all()
    few = draw(TrainingConfig(), positions_only(1000, (5, 7))).timesteps
    assert set(few.tolist()) == {5, 6, 7}


def test_noise_is_standard_normal_and_independent_of_the_posteriors():
    batch = replace(positions_only(500), mean=torch.zeros(500, 4, 4, 4))
    draws = draw(TrainingConfig(), batch)
    assert abs(draws.noise.mean().item()) < 4 / math.sqrt(draws.noise.numel())
    assert abs(draws.noise.var().item() - 1) < 4 * math.sqrt(2 / draws.noise.numel())
    product = (draws.noise * draws.posterior_noise).mean().item()
    assert abs(product) < 4 / math.sqrt(draws.noise.numel())
    assert draw(TrainingConfig(sample_posterior=False), batch).posterior_noise is None


def fields(draws: Draws):
    return [draws.timesteps, draws.noise, draws.posterior_noise, draws.keeps_subject, draws.keeps_text]


def test_a_sample_draws_the_same_in_any_batch():
    config, whole = TrainingConfig(text_dropout=0.5, subject_dropout=0.5), positions_only(64)
    expected = fields(draw(config, whole))
    parts = [fields(draw(config, part)) for part in whole.split(13)]
    assert [len(part) for part in whole.split(13)] == [13, 13, 13, 13, 12]
    assert all(torch.equal(torch.cat(each), one) for each, one in zip(zip(*parts, strict=True), expected, strict=True))
    other = fields(draw(config.model_copy(update={"seed": 1}), whole))
    assert not any(torch.equal(one, two) for one, two in zip(expected, other, strict=True))


# --- what the UNet is told ---


def losses(stack, adapters, batch, conditions, draws):
    with torch.no_grad():
        return pair_loss(adapters, stack, batch, draws, conditions).per_sample


def keep_all(batch):
    return without_dropout(draw(TrainingConfig(), batch))


def test_a_dropped_subject_leaves_no_tokens_and_a_dropped_text_an_empty_caption(tiny_stack, attached):
    batch = make_batch(tiny_stack, [0, 1])
    adapters, conditioner = attached(), Conditioner(tiny_stack, t_sub=1)
    draws = keep_all(batch)
    first = replace(draws, keeps_subject=torch.tensor([False, True]), keeps_text=torch.tensor([True, False]))
    found = conditioner.conditions(batch, first)
    empty = SubjectFeatures({name: tokens[:, :0] for name, tokens in batch.features.tokens.items()})
    zeros = SubjectFeatures({name: torch.zeros_like(tokens) for name, tokens in batch.features.tokens.items()})
    whole = conditioner.conditions(batch, draws)
    values = losses(tiny_stack, adapters, batch, found, first)
    text = TextCondition.cat([batch.text.select([0]), encode_prompts(tiny_stack, [""])])
    without = losses(tiny_stack, adapters, batch, replace(found, subject=empty, text=text), first)
    with_zeros = losses(tiny_stack, adapters, batch, replace(found, subject=zeros), first)
    torch.testing.assert_close(values[0], without[0], rtol=1e-5, atol=0)
    assert (values[0] - with_zeros[0]).abs() > 1e-4 * values[0]
    assert (values - losses(tiny_stack, adapters, batch, whole, first)).abs().min() > 1e-5
    assert torch.equal(found.text.tokens, text.tokens)
    # A batch in which nobody has a subject takes the short way; it means the same.
    nobody = replace(draws, keeps_subject=torch.tensor([False, False]))
    subject = conditioner.conditions(batch, nobody).subject
    assert {tokens.shape[1] for tokens in subject.tokens.values()} == {0}


@pytest.mark.parametrize("slots", [None, [[True, True, False], [True, False, False], [False, True, True]]])
def test_stored_and_recomputed_features_agree(tiny_stack, attached, slots):
    batches = {
        "fp32": make_batch(tiny_stack, [4, 5, 6], slots=slots),
        "fp16": make_batch(tiny_stack, [4, 5, 6], slots=slots, dtype=torch.float16),
        "recomputed": make_batch(tiny_stack, [4, 5, 6], slots=slots, policy="recompute", stored_text=False),
    }
    adapters, conditioner = attached(), Conditioner(tiny_stack, t_sub=1)
    draws = replace(keep_all(batches["fp32"]), keeps_subject=torch.tensor([True, True, False]))
    found = {
        name: losses(tiny_stack, adapters, batch, conditioner.conditions(batch, draws), draws)
        for name, batch in batches.items()
    }
    torch.testing.assert_close(found["fp32"], found["recomputed"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found["fp16"], found["recomputed"], rtol=2**-10, atol=0)


def test_padded_slots_hold_a_blank_picture_where_they_are_not_masked(tiny_stack, attached):
    batch = make_batch(tiny_stack, [0, 1], slots=[[True, True], [True, False]])
    draws = keep_all(batch)
    blank = SubjectEncoder(tiny_stack).encode(torch.ones(1, 3, 32, 32), [""], t_sub=1)
    attached()
    subject = Conditioner(tiny_stack, t_sub=1, padded_slots=3).conditions(batch, draws).subject
    assert subject.mask is None
    for name, tokens in subject.tokens.items():
        num_tokens = blank.tokens[name].shape[1]
        given = batch.features.tokens[name]
        assert torch.equal(tokens[:, :num_tokens], given[:, :num_tokens])
        assert torch.equal(tokens[0, num_tokens : 2 * num_tokens], given[0, num_tokens:])
        for row, slot in ((0, 2), (1, 1), (1, 2)):
            assert torch.equal(tokens[row, slot * num_tokens : (slot + 1) * num_tokens], blank.tokens[name][0])


def test_blank_slots_need_a_store_of_all_tokens(tiny_stack):
    batch = make_batch(tiny_stack, [0])
    batch = replace(batch, features=SubjectFeatures({n: t[:, 1:] for n, t in batch.features.tokens.items()}))
    with pytest.raises(ConfigurationError, match=r"mask_padding false .* store of all tokens"):
        Conditioner(tiny_stack, t_sub=1, padded_slots=4).conditions(batch, keep_all(batch))


@pytest.mark.parametrize("masked", [False, True])
def test_texts_can_be_encoded_from_their_tokens(tiny_stack, masked):
    config = tiny_stack.text_encoder.config
    config.use_attention_mask = masked
    try:
        batch = make_batch(tiny_stack, [0, 1, 2, 3], stored_text=False)
        found = Conditioner(tiny_stack, t_sub=1).conditions(batch, keep_all(batch)).text
        assert torch.equal(found.tokens, encode_prompts(tiny_stack, CAPTIONS).tokens)
    finally:
        del config.use_attention_mask


# --- weights and rates ---


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights(tiny_stack, prediction):
    schedule = with_prediction(tiny_stack, prediction).schedule
    t = torch.tensor([0, 300, 700, 999])
    snr = (reference_alpha_bar() / (1 - reference_alpha_bar()))[t].double()
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(4)}[prediction]
    expected = torch.minimum(snr, torch.tensor(5.0)) / divisor
    torch.testing.assert_close(loss_weights(schedule, t, 5.0).double(), expected, rtol=1e-4, atol=0)
    assert loss_weights(schedule, t, 0.0).tolist() == [1.0] * 4


def test_the_learning_rate_over_a_run():
    config = OptimizerConfig(lr=1.0, warmup_steps=4, schedule="cosine", final_lr_share=0.1)
    rates = [learning_rate(config, step, 14) for step in range(14)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[9] == pytest.approx(0.1 + 0.9 * 0.5)  # half of the way down
    assert rates[13] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(0.9 * math.pi)))
    assert sorted(rates[4:], reverse=True) == rates[4:]
    assert learning_rate(config, 14, 14) == pytest.approx(0.1)
    constant = OptimizerConfig(lr=0.5, warmup_steps=2)
    assert [learning_rate(constant, step, 3) for step in range(3)] == [0.25, 0.5, 0.5]
    assert learning_rate(OptimizerConfig(lr=1.0, schedule="cosine", warmup_steps=9), 4, 5) == pytest.approx(5 / 9)


def test_a_range_beyond_the_schedule_is_refused(tiny_stack):
    from ezigen.training import Learner

    short = replace(tiny_stack, schedule=replace(tiny_stack.schedule, alphas_cumprod=torch.linspace(0.9, 0.1, 100)))
    config = TrainingConfig(coco=SourceConfig(max_timestep=99))
    with pytest.raises(ConfigurationError, match=r"training\.youtube_vis\.max_timestep is 999, .*ends at 99"):
        Learner(short, config, num_steps=1, t_sub=1)
