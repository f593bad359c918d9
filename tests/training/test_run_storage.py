"""What a run stores, without Ray: checkpoints that count or do not, the log, what the driver hears of its workers."""

import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ezigen.config import ConfigurationError
from ezigen.training import StepReport
from tasks.storage import OutputFolder
from tasks.training.checkpoints import COMPLETE, Checkpoints, checkpoint_step
from tasks.training.control import Control, Pulse
from tasks.training.log import SHEET_TAG, RunLog, read_log, read_recent
from tasks.training.scratch import remove_abandoned, scratch_folder
from tasks.training.worker import _Upload


@pytest.fixture(params=["folder", "s3"])
def output(request, tmp_path) -> OutputFolder:
    return OutputFolder(str(tmp_path / "run") if request.param == "folder" else request.getfixturevalue("s3_folder"))


def make_files(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter.safetensors").write_bytes(bytes([step]) * 100_000)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    return folder


def test_a_checkpoint_comes_back_as_it_was_and_counts_only_while_it_is_whole(output, tmp_path):
    checkpoints = Checkpoints(output)
    assert checkpoints.find() == []
    for step in (5, 10, 15):
        checkpoints.store(step, make_files(tmp_path / f"local-{step}", step))
    assert [found.step for found in checkpoints.find()] == [5, 10, 15]
    with checkpoints.open(10, tmp_path / "scratch") as folder:
        assert (folder / "adapter.safetensors").read_bytes() == bytes([10]) * 100_000
        assert {path.name for path in folder.iterdir()} >= {"adapter.safetensors", "state.json"}

    filesystem = output.filesystem
    filesystem.rm_file(f"{checkpoints.path(15)}/state.json")
    filesystem.rm_file(f"{checkpoints.path(10)}/{COMPLETE}")
    assert [found.step for found in checkpoints.find()] == [5]
    with (
        pytest.raises(ConfigurationError, match="step-00000010 is not what was written"),
        checkpoints.open(10, tmp_path),
    ):
        pass

    filesystem.pipe_file(f"{checkpoints.path(5)}/adapter.safetensors", bytes([6]) * 100_000)
    with pytest.raises(ConfigurationError, match=r"step-00000005/adapter\.safetensors"), checkpoints.open(5, tmp_path):
        pass


def test_leftovers_and_old_checkpoints_are_collected(output, tmp_path):
    checkpoints = Checkpoints(output)
    for step in (5, 10, 15, 20):
        checkpoints.store(step, make_files(tmp_path / f"local-{step}", step))
    output.filesystem.rm_file(f"{checkpoints.path(10)}/{COMPLETE}")
    assert checkpoints.collect(2) == [5, 10]
    assert [found.step for found in checkpoints.find()] == [15, 20]
    assert checkpoints.remove_after(15) == [20]
    assert [found.step for found in checkpoints.find()] == [15]


def test_storing_again_replaces_what_an_earlier_try_left(output, tmp_path):
    checkpoints = Checkpoints(output)
    checkpoints.store(5, make_files(tmp_path / "one", 1))
    checkpoints.store(5, make_files(tmp_path / "two", 2))
    with checkpoints.open(5, tmp_path / "scratch") as folder:
        assert json.loads((folder / "state.json").read_text()) == {"step": 2}


@pytest.mark.parametrize("name", ["step-5", "step-0000000x", "checkpoint_2026", ".partial-1"])
def test_other_folders_are_no_checkpoints(name):
    assert checkpoint_step(name) is None


def report(step: int) -> StepReport:
    return StepReport(step, 1.0 / step, 0.5, 1e-4, 4, (0.1 * step, 0.0), (4, 0), flag=False)


def test_a_log_is_cut_where_a_run_goes_on(output):
    log = RunLog(output)
    for first in (1, 5, 9):
        for step in range(first, first + 4):
            log.add(report(step))
        log.flush()
    log.add_measurement(8, {"held_out_loss": 0.5})
    log.add_measurement(12, {"held_out_loss": 0.4})
    log.add(report(13))  # a step that no segment holds yet
    table = read_log(output)
    assert table.column("step").to_pylist() == list(range(1, 13))
    assert table.column("loss_coco").to_pylist() == [0.1 * step for step in range(1, 13)]
    assert table.column("loss_youtube_vis").null_count == 12
    assert read_recent(output, 5).column("step").to_pylist() == [8, 9, 10, 11, 12]

    log.remove_after(8)
    log.flush()
    assert read_log(output).column("step").to_pylist() == list(range(1, 9))
    assert list(output.list("tensorboard")) == [
        f"events.out.tfevents.{steps}.ezigen" for steps in ("00000001-00000004", "00000005-00000008", "00000008")
    ]


def read_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Step and value of everything in a file in TensorBoard's format: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = path.read_bytes(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        yield from ((event.step, value) for value in event.summary.value)
        at += 12 + length + 4


def read_events(path: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of every scalar."""
    return [(step, value.tag, round(value.simple_value, 6)) for step, value in read_values(path)]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    log = RunLog(OutputFolder(str(tmp_path)))
    for step in (1, 2, 3):
        log.add(report(step))
    log.flush()
    log.add_measurement(3, {"held_out_loss": 0.5})
    events = [event for path in sorted((tmp_path / "tensorboard").iterdir()) for event in read_events(path)]
    assert [(step, value) for step, name, value in events if name == "train/loss"] == [
        (1, 1.0),
        (2, 0.5),
        (3, 0.333333),
    ]
    assert events[-1] == (3, "validation/held_out_loss", 0.5)
    assert {name for _, name, _ in events} == {
        "train/loss", "train/grad_norm", "train/lr", "train/loss_coco", "validation/held_out_loss"
    }  # fmt: skip


def test_tensorboard_gets_the_sample_sheets(tmp_path):
    sheet = Image.new("RGB", (96, 64), (200, 30, 30))
    sheet.paste((20, 40, 220), (48, 0, 96, 64))
    log = RunLog(OutputFolder(str(tmp_path)))
    log.add_measurement(500, {"dino": 0.7}, sheet)
    log.add_measurement(1000, {"dino": 0.8}, sheet.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    values = [value for path in sorted((tmp_path / "tensorboard").iterdir()) for value in read_values(path)]
    images = {step: value.image for step, value in values if value.tag == SHEET_TAG}
    assert {step: (image.width, image.height, image.colorspace) for step, image in images.items()} == {
        500: (96, 64, 3),
        1000: (96, 64, 3),
    }
    for step, red, blue in ((500, 10, 80), (1000, 80, 10)):
        with Image.open(io.BytesIO(images[step].encoded_image_string)) as shown:
            np.testing.assert_allclose(shown.getpixel((red, 30)), (200, 30, 30), atol=12)
            np.testing.assert_allclose(shown.getpixel((blue, 30)), (20, 40, 220), atol=12)
    assert {value.tag for _, value in values} == {SHEET_TAG, "validation/dino"}


def test_an_upload_that_was_never_begun_is_not_waited_for(tmp_path):
    upload = _Upload(Checkpoints(OutputFolder(str(tmp_path))))
    with pytest.raises(RuntimeError, match="no controller"), upload.handed_over():
        raise RuntimeError("no controller")
    waiting = threading.Thread(target=upload.wait, daemon=True)
    waiting.start()
    waiting.join(5)
    assert not waiting.is_alive()


def test_what_a_lost_group_of_workers_did_counts_on():
    control = Control()
    first = control.begin(2)
    assert control.state().is_loading
    control.ready(first)
    control.tell(first, Pulse("training", 10, checkpoint_step=8, samples=40, training_s=2.0))
    control.group_lost("worker 1 died", was_started=True, is_waiting=False)
    state = control.state()
    assert (state.samples, state.training_s, state.num_losses, state.is_ready) == (40, 2.0, 1, False)
    assert (state.pulse.phase, state.pulse.step, state.reason) == ("restarting", 10, "worker 1 died")

    second = control.begin(1)
    control.tell(first, Pulse("training", 99))  # from a worker that has not heard of its end
    control.tell(second, Pulse("training", 9, samples=4, training_s=0.5))
    control.ready(second)
    state = control.state()
    assert (state.pulse.step, state.num_workers, state.is_ready, state.samples) == (9, 1, True, 40)


def test_a_group_that_makes_place_for_a_larger_one_is_no_loss():
    control = Control()
    first = control.begin(1)
    control.ready(first)
    control.tell(first, Pulse("training", 10, checkpoint_step=8, samples=40, training_s=2.0))
    control.group_resized(2)
    control.tell(first, Pulse("training", 11, checkpoint_step=8, samples=44, training_s=2.2))  # until it is ended
    state = control.state()
    assert (state.num_resizes, state.num_losses, state.is_ready) == (1, 0, False)
    assert (state.samples, state.pulse.phase, state.pulse.step, state.pulse.checkpoint_step) == (40, "resizing", 10, 8)
    assert state.reason == "there is place for 2 workers instead of 1"
    second = control.begin(2)
    assert control.state().pulse.phase == "resizing"
    control.tell(second, Pulse("training", 9, samples=4, training_s=0.1))
    assert (control.state().samples, control.state().pulse.step) == (40, 9)


def test_groups_that_never_come_to_life_are_counted_and_forgotten_by_one_that_does():
    control = Control()
    for _ in range(2):
        control.group_lost("no module named x", was_started=False, is_waiting=False)
    control.group_lost("no place", was_started=False, is_waiting=True)
    assert (control.state().num_failed_starts, control.state().num_losses) == (2, 0)
    control.ready(control.begin(1))
    assert control.state().num_failed_starts == 0


def test_the_first_error_that_ends_a_run_counts_and_a_stop_is_passed_on():
    control = Control()
    attempt = control.begin(1)
    assert not control.tell(attempt, Pulse("training", 1))
    control.stop()
    assert control.tell(attempt, Pulse("training", 2))
    control.fail(ConfigurationError("first"))
    control.fail(ConfigurationError("second"))
    assert str(control.state().error) == "first"


def test_folders_of_killed_workers_go_and_those_of_living_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as living:
        (living / "save-5").mkdir()
        dead = tmp_path / "ezigen-training-dead"
        shutil.copytree(living, dead)
        assert remove_abandoned(min_age_s=0) == 1
        assert living.is_dir()
        assert not dead.exists()
    assert not living.exists()
