"""The recipe's loop: it resumes where it stopped, its schedule ends with its time, its checkpoints are whole."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ezigen.mini import weights_folder
from ezigen.mini.recipe.__main__ import build_config, build_parser
from ezigen.mini.recipe.adapters import draw_times
from ezigen.mini.recipe.config import JointConfig
from ezigen.mini.recipe.joint import draw_batch
from ezigen.mini.recipe.latents import LatentStore
from ezigen.mini.recipe.optimizer import Muon, orthogonalize
from ezigen.mini.recipe.package import halve_weights, unpack_weights
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


def test_the_presets_take_as_long_as_the_documentation_says(tmp_path: Path) -> None:
    minutes = {name: preset(tmp_path, tmp_path).minutes for name, preset in PRESETS.items()}
    assert 50 <= minutes["gpu"] < 60  # "under an hour"
    encoders = 2 * 10 + 5  # in a second process
    assert minutes["cpu"] - encoders == pytest.approx(150, abs=5)  # "about two and a half hours"


def test_the_command_line_sets_the_time_of_the_joint_phase(tmp_path: Path) -> None:
    args = build_parser().parse_args(["joint", "--from-weights", "--work", str(tmp_path), "--minutes", "7"])
    assert args.from_weights
    config = build_config(args)
    assert config.joint.minutes == 7
    assert config.unet == PRESETS["cpu"](tmp_path, tmp_path).unet


def test_unpacked_weights_lie_where_the_phases_look_and_keep_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    unpack_weights(weights_folder(), tmp_path)
    assert not list((tmp_path / "adapter").iterdir())
    for part in ("text_to_image/unet/config.json", "text_to_image/scheduler", "tokenizer/vocab.json", "vae", "judge"):
        assert (tmp_path / part).exists()
    packed = weights_folder() / "unet" / "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "text_to_image" / "unet" / packed.name).read_bytes() == packed.read_bytes()


def make_store(folder: Path, count: int = 200) -> LatentStore:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "latents": torch.zeros(count, 1, 1, 1, dtype=torch.float16),
        "variants": torch.randint(0, 5, (count,), generator=generator).to(torch.int16),
        "scenes": torch.zeros(count, dtype=torch.int8),
        "mirrored": torch.rand(count, generator=generator) < 0.5,
        "masks": torch.zeros(count, 1, 1, dtype=torch.uint8),
    }
    save_file(tensors, folder / "latents-0000.safetensors")
    return LatentStore(folder)


def test_two_targets_of_a_subject_show_the_same_variant_from_the_same_side(tmp_path: Path) -> None:
    store, settings = make_store(tmp_path), JointConfig(num_subjects=50, num_idle=7)
    picked = draw_batch(store, np.random.default_rng(0), settings)
    assert len(picked) == settings.batch == 107
    first, second = picked[:50], picked[50:100]
    assert torch.equal(store.variants[first], store.variants[second])
    assert torch.equal(store.mirrored[first], store.mirrored[second])
    assert (first != second).float().mean() > 0.8


def test_timesteps_favour_the_range_asked_for() -> None:
    times = draw_times(np.random.default_rng(0), 200, 0.75, (300, 1000))
    assert len(times) == 200
    assert 0 <= times.min() < 30
    assert times.max() < 1000
    assert int((times >= 300).sum()) == pytest.approx(150 + 35, abs=2)
