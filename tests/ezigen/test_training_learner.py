"""Training step by step: resumed, divided, diverged, saved; and nothing frozen moves."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ezigen.adapters import AdapterCard, attach_adapters, detach_adapters, load_adapter
from ezigen.config import ConfigurationError, OptimizerConfig, TrainingConfig
from ezigen.models import load_stack
from ezigen.training import Learner, TrainingDiverged
from tests.ezigen import training_process
from tests.ezigen.training_batches import make_batch

FILES = ("adapter.safetensors", "optimizer.safetensors", "ema.safetensors")


@pytest.fixture
def learn(tiny_stack):
    """Learners on the tiny stack, one at a time."""

    def make(config=None, *, num_steps=8, stack=None, **options):
        detach_adapters(tiny_stack.unet)
        return Learner(stack or tiny_stack, config or TrainingConfig(), num_steps=num_steps, t_sub=1, **options)

    yield make
    tiny_stack.unet.disable_gradient_checkpointing()
    detach_adapters(tiny_stack.unet)


def optimizer(kind="adamw", **changes):
    return OptimizerConfig(kind=kind, **{"lr": 1e-3, "ema_decay": 0.9, "schedule": "cosine", **changes})


def run(learner, batches):
    return [learner.train_step([batch], num_samples=len(batch)) for batch in batches]


def snapshot(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_same_bits(one, other):
    assert set(one) == set(other)
    assert not [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


def frozen(stack):
    networks = {"unet": stack.unet, "vae": stack.vae, "text_encoder": stack.text_encoder}
    return {f"{key}.{name}": t for key, network in networks.items() for name, t in network.state_dict().items()}


# --- resume ---


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_a_resumed_run_equals_an_undisturbed_one_bit_by_bit(learn, tiny_stack, tmp_path, kind):
    config = TrainingConfig(
        text_dropout=0.3, gradient_checkpointing=kind == "adamw", optimizer=optimizer(kind, warmup_steps=2)
    )
    batches = [make_batch(tiny_stack, [3 * k, 3 * k + 1, 3 * k + 2], policy="recompute") for k in range(5)]
    whole = learn(config)
    reports = run(whole, batches)
    whole.save(tmp_path / "whole")

    first = learn(config)
    head = run(first, batches[:2])
    first.save(tmp_path / "checkpoint")
    second = learn(config)
    second.load(tmp_path / "checkpoint")
    assert second.step == 2
    tail = run(second, batches[2:])
    second.save(tmp_path / "resumed")

    assert head + tail == reports
    for name in FILES:
        assert_same_bits(load_file(tmp_path / "whole" / name), load_file(tmp_path / "resumed" / name))
    assert (tmp_path / "whole" / "state.json").read_bytes() == (tmp_path / "resumed" / "state.json").read_bytes()
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert reports[0].lr == 5e-4
    assert reports[-1].samples_by_source == tuple((batches[-1].sources == s).sum().item() for s in (0, 1))


def test_a_checkpoint_before_the_first_step(learn, tiny_stack, tmp_path):
    config = TrainingConfig(optimizer=optimizer(ema_decay=0.0))
    batches = [make_batch(tiny_stack, [0, 1])]
    learner = learn(config)
    learner.save(tmp_path)
    report = run(learner, batches)
    again = learn(config)
    again.load(tmp_path)
    assert run(again, batches) == report
    assert not (tmp_path / "ema.safetensors").exists()


def test_a_checkpoint_of_another_run_is_refused_by_name(learn, tmp_path):
    learn(TrainingConfig(optimizer=optimizer())).save(tmp_path)
    with pytest.raises(ConfigurationError, match=r"training\.optimizer\.lr 0\.001, but this run's is 0\.002"):
        learn(TrainingConfig(optimizer=optimizer(lr=2e-3))).load(tmp_path)
    with pytest.raises(ConfigurationError, match="num_steps 8, but this run's is 9"):
        learn(TrainingConfig(optimizer=optimizer()), num_steps=9).load(tmp_path)
    state = json.loads((tmp_path / "state.json").read_bytes())
    state["identity"]["precision"] = "bf16"
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ConfigurationError, match="precision bf16, but this run's is fp32"):
        learn(TrainingConfig(optimizer=optimizer())).load(tmp_path)


@pytest.mark.parametrize("name", [*FILES, "state.json"])
def test_an_incomplete_checkpoint_is_refused_by_name(learn, tmp_path, name):
    config = TrainingConfig(optimizer=optimizer())
    learn(config).save(tmp_path)
    (tmp_path / name).unlink()
    learner = learn(config)
    before = snapshot(learner.adapters.tensors())
    with pytest.raises(ConfigurationError, match=rf"{name} is missing"):
        learner.load(tmp_path)
    assert learner.step == 0
    assert_same_bits(before, snapshot(learner.adapters.tensors()))


def test_a_state_that_lacks_a_tensor_is_refused_by_name(learn, tiny_stack, tmp_path):
    from safetensors.torch import save_file

    config = TrainingConfig(optimizer=optimizer())
    learner = learn(config)
    run(learner, [make_batch(tiny_stack, [0])])
    learner.save(tmp_path)
    name = "mid_block.attentions.0.transformer_blocks.0.to_q.weight"
    for file in FILES:
        kept = load_file(tmp_path / file)
        save_file({key: tensor for key, tensor in kept.items() if not key.startswith(name)}, tmp_path / file)
        with pytest.raises(ConfigurationError, match=f"{file}.*{name}"):
            learn(config).load(tmp_path)
        save_file(kept, tmp_path / file)


# --- what changes, and what does not ---


def test_frozen_networks_stay_as_they_are_to_the_bit(learn, tiny_stack):
    learner = learn(TrainingConfig(gradient_checkpointing=True, max_subjects=2, mask_padding=False))
    before, adapters = snapshot(frozen(tiny_stack)), snapshot(learner.adapters.tensors())
    batches = [
        make_batch(tiny_stack, [2 * k, 2 * k + 1], policy=policy, slots=[[True, False], [True, True]])
        for k, policy in enumerate(["stored", "recompute"] * 2)
    ]
    run(learner, batches)
    learner.held_out_loss(batches)
    assert_same_bits(before, frozen(tiny_stack))
    assert not [name for name, tensor in learner.adapters.tensors().items() if torch.equal(tensor, adapters[name])]
    assert len(adapters) == 7 * 8


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_it_learns(learn, tiny_stack, kind):
    batches = [make_batch(tiny_stack, [2 * k, 2 * k + 1]) for k in range(4)]
    learner = learn(TrainingConfig(subject_dropout=0.0, optimizer=optimizer(kind, lr=3e-3, schedule="constant")))
    before, count = learner.held_out_loss(batches)
    run(learner, batches * 5)
    after, _ = learner.held_out_loss(batches)
    assert count == 8
    assert after < 0.97 * before
    assert learner.held_out_loss(batches) == (after, 8)


def test_adam_is_that_of_the_formula(learn, tiny_stack):
    """Two steps of Adam with bias correction (arXiv 1412.6980, Algorithm 1) after clipping, on real gradients."""
    settings = OptimizerConfig(kind="adam", lr=1e-2, clip_norm=1e-2, weight_decay=0.5)
    learner = learn(TrainingConfig(optimizer=settings))
    name = "mid_block.attentions.0.transformer_blocks.0.to_out.weight"
    parameter, gradients = learner.adapters.tensors()[name], []
    expected = parameter.detach().clone().double()
    parameter.register_hook(lambda gradient: gradients.append(gradient.clone()))
    mean = square = torch.zeros_like(expected)
    for step in (1, 2):
        report = run(learner, [make_batch(tiny_stack, [step])])[0]
        gradient = gradients[-1].double() * min(1.0, 1e-2 / report.grad_norm)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        expected -= 1e-2 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    assert report.grad_norm > 1e-2
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-4, atol=1e-6)


def test_averages_follow_their_formula_and_are_what_is_used(learn, tiny_stack, tmp_path):
    learner = learn(TrainingConfig(optimizer=optimizer(ema_decay=0.25)))
    name = "mid_block.attentions.0.transformer_blocks.0.to_q.weight"
    average = learner.adapters.tensors()[name].detach().clone()
    for step in (1, 2, 3):
        run(learner, [make_batch(tiny_stack, [step])])
        decay = min(0.25, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * learner.adapters.tensors()[name].detach()
    current = snapshot(learner.adapters.tensors())
    with learner.averaged_weights():
        torch.testing.assert_close(learner.adapters.tensors()[name].detach(), average)
    assert_same_bits(current, snapshot(learner.adapters.tensors()))
    assert not torch.allclose(current[name], average, rtol=0, atol=1e-6)

    card = learner.save_adapter(tmp_path, AdapterCard(base_model="tiny", training={"steps": 3}))
    learner.close()
    loaded = attach_adapters(tiny_stack.unet)
    assert load_adapter(loaded, tmp_path, base_fingerprint=tiny_stack.fingerprint) == card
    torch.testing.assert_close(loaded.tensors()[name].detach(), average)
    assert (card.base_fingerprint, card.num_adapters) == (tiny_stack.fingerprint, 7)


# --- the same gradient, however it is divided ---


def gradients_of(learner, parts, num_samples):
    """What one step's update is made of: AdamW's first mean is a tenth of the gradient."""
    learner.train_step(parts, num_samples=num_samples)
    return {name: t for name, t in learner._optimizer.tensors().items() if name.endswith("exp_avg")}


@pytest.mark.parametrize("divided", ["micro-batches", "gradient checkpointing"])
def test_micro_batches_and_checkpointing_change_no_gradient(learn, tiny_stack, divided):
    config = TrainingConfig(min_snr_gamma=5.0, optimizer=optimizer(clip_norm=0.0))
    batch = make_batch(tiny_stack, range(5), slots=[[True, True], [True, False]] * 2 + [[True, True]])
    whole = gradients_of(learn(config), [batch], 5)
    if divided == "micro-batches":
        other = gradients_of(learn(config), batch.split(2), 5)
    else:
        other = gradients_of(learn(config.model_copy(update={"gradient_checkpointing": True})), [batch], 5)
    for name, gradient in whole.items():
        scale = gradient.abs().max()
        assert (other[name] - gradient).abs().max() < 1e-3 * scale, name


@pytest.mark.slow
def test_two_processes_equal_one(learn, tiny_folder, tmp_path):
    """Same global batches of 5, divided into 3 (as 2 + 1) and 2.

    fp32 sums in another order differ by some 1e-7 of a gradient's largest number, up to 3e-5 where terms cancel.
    AdamW divides a gradient by its own size, so that where it is near zero a weight may move another part of lr: 2 % of
    it at most, 3e-6 on the average, as measured; the bounds leave room for other processors.
    """
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(tiny_folder / name, tmp_path / "model" / name)
    shutil.copy(tiny_folder / "model_index.json", tmp_path / "model")
    command = [sys.executable, "-m", "tests.ezigen.training_process", str(tmp_path)]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([*command, str(rank), "2"], stdout=subprocess.PIPE, text=True, cwd=root) for rank in (0, 1)
    ]
    alone = training_process.run(tmp_path, 0, 1)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    first, second = ([json.loads(line) for line in output.splitlines()] for output in outputs)

    assert first == second  # every process reports the same numbers, and diverges at the same step
    assert first[-1] == alone[-1] == {"step": 4, "what": "loss"}
    assert [report["flag"] for report in first[:3]] == [False, True, False]
    for report, expected in zip(first[:3], alone[:3], strict=True):
        assert report["samples_by_source"] == list(expected["samples_by_source"])
        assert report["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert report["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    for name in FILES:
        ranks = [load_file(tmp_path / f"rank-{rank}-of-2" / name) for rank in (0, 1)]
        assert_same_bits(*ranks)
    one, two = (load_file(tmp_path / f"rank-0-of-{n}" / "optimizer.safetensors") for n in (1, 2))
    for name in one:
        assert (one[name] - two[name]).abs().max() <= 1e-3 * one[name].abs().max(), name
    one, two = (load_file(tmp_path / f"rank-0-of-{n}" / "adapter.safetensors") for n in (1, 2))
    differences = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert differences.max() < 0.5 * training_process.CONFIG.optimizer.lr
    assert differences.mean() < 1e-4 * training_process.CONFIG.optimizer.lr


# --- divergence ---


def test_a_step_that_is_not_finite_changes_nothing(learn, tiny_stack):
    learner = learn(TrainingConfig(optimizer=optimizer()))
    good, other = make_batch(tiny_stack, [0, 1]), make_batch(tiny_stack, [2, 3])
    run(learner, [good])
    before, state = snapshot(learner.adapters.tensors()), snapshot(learner._optimizer.tensors())
    with pytest.raises(TrainingDiverged, match=r"at step 2: the loss is nan.*optimizer\.lr") as caught:
        run(learner, [replace(good, mean=good.mean * float("inf"))])
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.step, copied.what, str(copied)) == (2, "loss", str(caught.value))
    assert_same_bits(before, snapshot(learner.adapters.tensors()))
    assert_same_bits(state, snapshot(learner._optimizer.tensors()))
    parameter = next(iter(learner.adapters.parameters()))  # an overflow on the way back alone
    handle = parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingDiverged, match="step 2: the gradient norm is"):
        run(learner, [good])
    handle.remove()
    report = run(learner, [other])[0]
    undisturbed = learn(TrainingConfig(optimizer=optimizer()))
    assert run(undisturbed, [good, other])[1] == report


def test_a_loss_above_the_limit_ends_the_run(learn, tiny_stack):
    batch = make_batch(tiny_stack, [0, 1])
    loss = run(learn(), [batch])[0].loss
    assert run(learn(TrainingConfig(max_loss=loss * 1.01)), [batch])[0].loss == loss
    with pytest.raises(TrainingDiverged, match=rf"step 1: the loss is .*above max_loss {loss / 1.01:g}"):
        run(learn(TrainingConfig(max_loss=loss / 1.01)), [batch])


def test_wrong_numbers_of_samples_are_found(learn, tiny_stack):
    learner = learn()
    with pytest.raises(ValueError, match="num_samples is 3, but the processes have 2"):
        learner.train_step([make_batch(tiny_stack, [0, 1])], num_samples=3)
    with pytest.raises(ValueError, match="without samples"):
        learner.train_step([], num_samples=1)
    assert learner.step == 0


# --- precision and where to start ---


def test_bf16_keeps_weights_in_fp32(learn, tiny_stack, tiny_folder):
    batches = [make_batch(tiny_stack, [2 * k, 2 * k + 1], dtype=torch.float16) for k in range(2)]
    exact = run(learn(TrainingConfig(precision="fp32", extra_residual=True)), batches)
    stack = load_stack(str(tiny_folder), device="cpu", dtype="fp32")
    learner = learn(TrainingConfig(precision="bf16", extra_residual=True, gradient_checkpointing=True), stack=stack)
    before = snapshot(frozen(learner.stack))
    rounded = run(learner, batches)
    assert {tensor.dtype for tensor in learner.adapters.tensors().values()} == {torch.float32}
    assert {tensor.dtype for name, tensor in before.items() if name.endswith("weight")} == {torch.bfloat16}
    assert_same_bits(before, frozen(learner.stack))
    for one, other in zip(exact, rounded, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.02)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=0.1)
    with learner.averaged_weights():
        assert {tensor.dtype for tensor in learner.adapters.tensors().values()} == {torch.bfloat16}
    with pytest.raises(ConfigurationError, match=r"precision is fp32.*model\.dtype"):
        learn(TrainingConfig(precision="fp32"), stack=load_stack(str(tiny_folder), device="cpu", dtype="bf16"))


def test_training_starts_from_copies_or_from_an_adapter(learn, tiny_stack, tiny_folder):
    adapters = learn().adapters
    for name in adapters.names:
        block = tiny_stack.unet.get_submodule(name).stock
        assert torch.equal(adapters[name].to_q.weight, block.attn1.to_q.weight)
        assert adapters[name].subject_weight == 1
    detach_adapters(tiny_stack.unet)
    given = attach_adapters(tiny_stack.unet)
    load_adapter(given, tiny_folder / "adapter", base_fingerprint=None)
    assert_same_bits(snapshot(given.tensors()), snapshot(learn(initial=tiny_folder / "adapter").adapters.tensors()))
    with pytest.raises(ConfigurationError, match=r"extra_residual False; set training\.extra_residual"):
        learn(TrainingConfig(extra_residual=True), initial=tiny_folder / "adapter")
    with pytest.raises(ConfigurationError, match=r"no model\.safetensors or pytorch_model\.bin"):
        learn(TrainingConfig(extra_residual=True), initial=tiny_folder / "unet")
    learn()  # nothing of what failed is left attached
