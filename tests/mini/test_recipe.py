"""The recipe's loop: it resumes where it stopped, its schedule ends with its time, its checkpoints are whole."""

from collections.abc import Iterator
from pathlib import Path

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
from ezigen.mini.recipe.pictures import random_crops
from ezigen.mini.recipe.presets import PRESETS
from ezigen.mini.recipe.state import Trainer, write_atomically
from ezigen.mini.recipe.workers import spread


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
    assert 12 <= minutes["gpu"] <= 16  # "a quarter of an hour"
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
        "captions": torch.tensor([[[1, 5, 2, 2], [1, 6, 7, 2]]], dtype=torch.int16).repeat(count, 1, 1),
    }
    save_file(tensors, folder / "latents-0000.safetensors")
    return LatentStore(folder)


def test_two_targets_of_a_subject_show_the_same_variant_from_the_same_side(tmp_path: Path) -> None:
    torch.manual_seed(0)
    store, settings = make_store(tmp_path), JointConfig(num_subjects=50, num_idle=7)
    picked = draw_batch(store, settings)
    assert len(picked) == settings.batch == 107
    first, second = picked[:50], picked[50:100]
    assert torch.equal(store.variants[first], store.variants[second])
    assert torch.equal(store.mirrored[first], store.mirrored[second])
    assert (first != second).float().mean() > 0.8


def test_captions_are_drawn_and_dropped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    store = make_store(tmp_path)
    captions = store.draw_captions(store.draw(1000), 0.25).tolist()
    counts = [captions.count(caption) for caption in ([1, 2, 2, 2], [1, 5, 2, 2], [1, 6, 7, 2])]
    assert sum(counts) == 1000
    assert counts == pytest.approx([250, 375, 375], abs=60)


def test_a_store_takes_up_shards_written_since(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (tmp_path / "latents-0001.safetensors").write_bytes((tmp_path / "latents-0000.safetensors").read_bytes())
    store.refresh()
    assert len(store) == len(store.order) == len(store.captions) == 400


def test_timesteps_favour_the_range_asked_for() -> None:
    times = draw_times(200, 0.75, (300, 1000), "cpu")
    assert len(times) == 200
    assert 0 <= times.min() < 30
    assert times.max() < 1000
    assert int((times >= 300).sum()) == pytest.approx(150 + 35, abs=2)
    assert not torch.equal(times, times.sort().values)


def test_what_is_spread_over_processes_comes_back_in_order() -> None:
    offset = 5
    for num_processes in (1, 3):
        assert list(spread(lambda number: number + offset, range(20), num_processes)) == list(range(5, 25))


def test_an_error_in_another_process_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(spread(lambda number: 1 // number, [1, 0], 2))


def test_muon_treats_matrices_of_one_shape_as_if_each_were_alone() -> None:
    def updated(together: bool) -> list[Tensor]:
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(6, 4)) for _ in range(3)]
        for weight in weights:
            weight.grad = torch.randn(6, 4)
        for group in [weights] if together else [[weight] for weight in weights]:
            Muon(group).step(0.1)
        return [weight.detach() for weight in weights]

    for one, other in zip(updated(True), updated(False), strict=True):
        torch.testing.assert_close(one, other)


def test_crops_are_parts_of_pictures(tmp_path: Path) -> None:
    pictures = torch.arange(2 * 8 * 8, dtype=torch.uint8).reshape(2, 8, 8, 1).repeat(1, 1, 1, 3)
    crops = random_crops(pictures, 50)
    assert crops.shape == (50, 3, 4, 4)
    values = crops.add(1).mul(127.5).round()[:, 0]
    assert torch.equal(values.diff(dim=2), torch.ones(50, 4, 3))
    assert torch.equal(values.diff(dim=1), torch.full((50, 3, 4), 8.0))
    assert len({float(value) for value in values[:, 0, 0]}) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_recorded_step_learns_as_one_that_is_not(tmp_path: Path) -> None:
    losses = {}
    for captures in (False, True):
        torch.manual_seed(0)
        net, wanted = nn.Linear(8, 8).cuda(), nn.Linear(8, 8).cuda()

        def squared(net: nn.Module = net, wanted: nn.Module = wanted) -> Iterator[Tensor]:
            while True:
                inputs = torch.randn(64, 8, device="cuda")
                yield (net(inputs) - wanted(inputs).detach()).square().mean()

        trainer = Trainer("toy", {"net": net}, 0.01, 0.05, tmp_path / str(captures), use_muon=True, captures=captures)
        trainer.run(squared(), 64)
        losses[captures] = float(next(squared()))
    assert losses[True] < 0.01
    assert losses[False] < 0.01
