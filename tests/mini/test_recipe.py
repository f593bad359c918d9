"""The recipe's loop: it resumes where it stopped, its schedule ends with its time, its checkpoints are whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ezigen.mini.recipe.optimizer import Muon, orthogonalize
from ezigen.mini.recipe.package import halve_weights
from ezigen.mini.recipe.presets import PRESETS
from ezigen.mini.recipe.state import Trainer, write_atomically


def make_trainer(folder: Path, minutes: float = 1.0) -> Trainer:
    torch.manual_seed(0)
    return Trainer("toy", {"net": nn.Linear(4, 4)}, 0.01, minutes, folder, ema_decay=0.9, use_muon=True)


def take_steps(trainer: Trainer, count: int) -> None:
    generator = torch.Generator().manual_seed(trainer.step)
    for _ in range(count):
        net = trainer.modules["net"]
        trainer.update(net(torch.randn(8, 4, generator=generator)).square().mean())


def test_a_resumed_trainer_goes_on_as_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole")
    take_steps(whole, 5)
    take_steps(whole, 5)
    first = make_trainer(tmp_path / "cut")
    take_steps(first, 5)
    first.save()
    second = make_trainer(tmp_path / "cut")
    assert second.step == 5
    take_steps(second, 5)
    for name, weight in whole.modules["net"].state_dict().items():
        assert torch.equal(weight, second.modules["net"].state_dict()[name])
    for name, average in whole.average.items():
        assert torch.equal(average, second.average[name])


def test_a_finished_phase_does_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, minutes=1e-9)
    trainer.seconds = 1.0
    trainer.save()

    def losses() -> Iterator[Tensor]:
        pytest.fail("no loss is needed")
        yield torch.zeros(())

    again = make_trainer(tmp_path, minutes=1e-9)
    again.run(losses(), batch=1)
    assert again.step == 0


def test_the_learning_rate_warms_up_and_decays_with_the_time_used(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert trainer.learning_rate() == pytest.approx(0.01 / 100)
    trainer.step, trainer.seconds = 500, 0.0
    assert trainer.learning_rate() == pytest.approx(0.01)
    trainer.seconds = 60.0
    assert trainer.learning_rate() == pytest.approx(0.0002)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, lambda target: target.write_text("old") and None)

    def fail(target: Path) -> None:
        target.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalized_updates_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix, steps=5).float())
    assert values.max() < 1.4
    assert values.median() > 0.6


def test_muon_lowers_a_loss() -> None:
    torch.manual_seed(0)
    net, wanted = nn.Linear(6, 6, bias=False), torch.randn(6, 6)
    optimizer, losses = Muon([net.weight]), []
    for _ in range(200):
        net.weight.grad = None
        loss = (net.weight - wanted).square().mean()
        loss.backward()
        optimizer.step(0.05)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_halved_weights_keep_names_and_metadata(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3), "n": torch.arange(3)}, tmp_path / "in.safetensors", {"format": "pt"})
    halve_weights(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.get_tensor("a").dtype == torch.float16
        assert opened.get_tensor("n").dtype == torch.int64


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid(name: str, tmp_path: Path) -> None:
    config = PRESETS[name](tmp_path, tmp_path / "pictures")
    assert config.world.side_px % 16 == 0
    assert config.unet.minutes > config.vae.minutes
