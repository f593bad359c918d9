"""Training on a GPU. Run with `pytest -m gpu` where there is one."""

import pytest
import torch
from safetensors.torch import load_file

from ezigen.config import OptimizerConfig, TrainingConfig
from ezigen.models import load_stack
from ezigen.training import Learner
from tests.ezigen.training_batches import make_batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
SLOTS = [[True, True], [True, False], [True, True]]


def train(folder, device, batches, **config):
    stack = load_stack(str(folder), device=device, dtype="fp32")
    settings = TrainingConfig(**config, text_dropout=0.3, optimizer=OptimizerConfig(ema_decay=0.9))
    learner = Learner(stack, settings, num_steps=4, t_sub=1)
    return learner, [learner.train_step([batch.to(device)], num_samples=len(batch)) for batch in batches]


@pytest.mark.parametrize("policy", ["stored", "recompute"])
def test_gpu_equals_cpu(tiny_folder, tiny_stack, policy):
    batches = [make_batch(tiny_stack, range(3 * k, 3 * k + 3), slots=SLOTS, policy=policy) for k in range(3)]
    on_cpu = train(tiny_folder, "cpu", batches, precision="fp32")[1]
    exact = train(tiny_folder, "cuda", batches, precision="fp32")[1]
    rounded = train(tiny_folder, "cuda", batches, gradient_checkpointing=True)[1]
    for one, other, third in zip(on_cpu, exact, rounded, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-3)
        assert third.loss == pytest.approx(one.loss, rel=0.02)


def test_a_checkpoint_of_a_gpu_comes_back(tiny_folder, tiny_stack, tmp_path):
    batches = [make_batch(tiny_stack, [k, k + 1]) for k in range(2)]
    learner, _ = train(tiny_folder, "cuda", batches)
    learner.save(tmp_path / "first")
    again, _ = train(tiny_folder, "cuda", [])
    again.load(tmp_path / "first")
    again.save(tmp_path / "second")
    for name in ("adapter.safetensors", "optimizer.safetensors", "ema.safetensors"):
        one, other = load_file(tmp_path / "first" / name), load_file(tmp_path / "second" / name)
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
