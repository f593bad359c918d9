"""Runs of train_adapter: the same numbers, bit for bit, whatever is stopped, killed or left behind on the way."""

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from ezigen.config import ConfigurationError, TrainingClusterConfig, TrainingConfig
from ezigen.training import TrainingDiverged
from ezigen.training.batch import SOURCES
from tasks.cluster import ClusterLost
from tasks.cluster.planner import PoolFailed
from tasks.storage import OutputFolder
from tasks.training.checkpoints import Checkpoints
from tasks.training.data import TrainingSet
from tasks.training.outcome import TrainingProgress
from tests.monitoring.scraping import total
from tests.run.conftest import wait_until
from tests.run.test_kills import assert_gone
from tests.training.stage import (
    CONFIG,
    EVERY,
    NUM_STEPS,
    Stage,
    Stored,
    assert_equal_runs,
    assert_equal_tensors,
    at_checkpoint,
    write_store,
)

pytestmark = pytest.mark.slow

NO_RAY = TrainingClusterConfig(address="127.0.0.1:1")


@pytest.fixture(scope="module")
def features(tmp_path_factory, tiny_folder) -> str:
    return write_store(tmp_path_factory.mktemp("data"), tiny_folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, features, tiny_folder, ray_address) -> Stored:
    """A run on one worker that nothing happened to."""
    stage = Stage(features, tmp_path_factory.mktemp("reference"), tiny_folder)
    outcome = stage.run(cluster=on(ray_address))
    assert (outcome.state, outcome.step, outcome.steps_made, outcome.num_restarts) == (
        "finished",
        NUM_STEPS,
        NUM_STEPS,
        0,
    )
    stored = Stored(stage.plan().output)
    told = functools.partial(total, run=stored.output.name)
    wait_until(lambda: told("ray_ezigen_train_steps_total") == NUM_STEPS, 30, "the export of metrics")
    assert told("ray_ezigen_train_loss") == pytest.approx(outcome.loss)
    assert told("ray_ezigen_worker_seconds_total", part="step") > 0
    assert told("ray_ezigen_worker_seconds_total", part="load") > 0
    assert [measured.step for measured in outcome.measurements] == [30, 60, NUM_STEPS]
    assert outcome.loss == pytest.approx(np.mean(stored.log.column("loss").to_numpy()))
    assert stored.steps == [NUM_STEPS - EVERY, NUM_STEPS]

    again = stage.run(cluster=NO_RAY)  # where no Ray can be
    assert again.nothing_to_do
    assert (again.final_uri, again.measurements) == (outcome.final_uri, outcome.measurements)
    return stored


def on(address: str, num_workers: int = 1, **changes) -> TrainingClusterConfig:
    return TrainingClusterConfig(address=address, num_workers=num_workers, **changes)


def processes(title: str, root: int | None = None) -> list[psutil.Process]:
    """Descendants of a process whose title is that of a class of Ray Train."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            if process.cmdline()[0].startswith(title):
                found.append(process)
    return found


def kill_one(title: str) -> list[int]:
    """Kills one process, like the out-of-memory killer does; returns its id."""
    chosen = processes(title)[-1:]
    for process in chosen:
        process.kill()
    return [process.pid for process in chosen]


def test_a_run_that_is_stopped_and_then_loses_a_worker_stores_the_same(
    reference, features, tmp_path, tiny_folder, ray_address
):
    stage = Stage(features, tmp_path, tiny_folder)
    stored, stop = Stored(stage.plan().output), threading.Event()
    with at_checkpoint(stored, EVERY, stop.set):
        outcome = stage.run(cluster=on(ray_address), stop=stop)
    assert outcome.stopped
    assert EVERY <= outcome.step == outcome.steps_made < NUM_STEPS
    assert stored.steps[-1] == outcome.step  # wherever it was stopped, that step has a checkpoint
    assert stored.log.column("step").to_pylist() == list(range(1, outcome.step + 1))
    assert not outcome.final_uri
    assert state_of(stored) == "stopped"

    plan = stage.plan()
    assert (plan.checkpoint_step, plan.steps_to_do, plan.finished) == (outcome.step, NUM_STEPS - outcome.step, False)
    killed: list[int] = []
    seen: list[TrainingProgress] = []
    with at_checkpoint(stored, outcome.step + 2 * EVERY, lambda: killed.extend(kill_one("ray::RayTrainWorker"))):
        resumed = stage.run(plan, cluster=on(ray_address), on_progress=seen.append)
    assert killed
    assert (resumed.state, resumed.step, resumed.num_restarts) == ("finished", NUM_STEPS, 1)
    assert resumed.steps_made == NUM_STEPS - outcome.step
    assert {"starting", "training", "restarting"} <= {progress.phase for progress in seen}
    assert (seen[-1].step, seen[-1].num_steps, seen[-1].num_restarts) == (NUM_STEPS, NUM_STEPS, 1)
    assert_equal_runs(stored, reference)
    assert stored.steps == [NUM_STEPS - EVERY, NUM_STEPS]
    assert stage.plan().finished


def test_a_checkpoint_that_ray_has_not_counted_yet_is_gone_on_from(
    reference, features, tmp_path, tiny_folder, ray_address, monkeypatch, caplog
):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "5")  # Ray Train looks as seldom as that for checkpoints
    stage = Stage(features, tmp_path, tiny_folder, monitoring={"checkpoint_every": NUM_STEPS // 2})
    stored, killed = Stored(stage.plan().output), []
    with (
        caplog.at_level("INFO", "ezigen.worker"),
        at_checkpoint(stored, NUM_STEPS // 2, lambda: killed.extend(kill_one("ray::RayTrainWorker"))),
    ):
        outcome = stage.run(cluster=on(ray_address))
    assert killed
    assert (outcome.state, outcome.num_restarts) == ("finished", 1)
    begun = re.findall(r"goes on after step (\d+)", caplog.text)
    assert [int(step) for step in begun] == [0, NUM_STEPS // 2]
    assert stored.steps == [NUM_STEPS // 2, NUM_STEPS]
    assert_equal_runs(stored, reference)


def test_a_killed_driver_leaves_nothing_that_the_next_run_does_not_finish(
    reference, features, tmp_path, tiny_folder, ray_address
):
    stage = Stage(features, tmp_path, tiny_folder)
    output = stage.plan().output
    stored = Stored(output)
    process = start_driver(features, tmp_path, tiny_folder)
    few = random.Random().randrange(EVERY, NUM_STEPS // 2)
    wait_until(lambda: reached(stored, few) or process.poll() is not None, 120, f"checkpoint {few}")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert_gone(children)
    assert few <= stored.steps[-1] < NUM_STEPS, (tmp_path / "log").read_text()

    # What other moments of death leave: an upload without its end, and Ray Train's record cut off in the middle.
    orphan = Path(Checkpoints(output).path(NUM_STEPS - 1))
    orphan.mkdir()
    (orphan / "adapter.safetensors").write_bytes(b"half of it")
    snapshot = Path(output.path("checkpoints/checkpoint_manager_snapshot.json"))
    snapshot.write_bytes(snapshot.read_bytes()[:100])

    outcome = stage.run(cluster=on(ray_address))
    assert (outcome.state, outcome.step) == ("finished", NUM_STEPS)
    assert_equal_runs(stored, reference)
    assert stored.folders() == {f"step-{step:08d}" for step in (NUM_STEPS - EVERY, NUM_STEPS)}


def test_two_workers_learn_what_one_does_and_one_goes_on_for_them(
    reference, features, tmp_path, tiny_folder, ray_address
):
    stage = Stage(features, tmp_path, tiny_folder)
    stored, stop = Stored(stage.plan().output), threading.Event()
    with at_checkpoint(stored, 3 * EVERY, stop.set):
        outcome = stage.run(cluster=on(ray_address, num_workers=2), stop=stop)
    assert (outcome.state, outcome.num_workers) == ("stopped", 2)
    assert outcome.step < NUM_STEPS
    assert stage.run(cluster=on(ray_address)).state == "finished"

    ours, theirs = stored.log, reference.log
    assert ours.column("step").equals(theirs.column("step"))
    for source in ("coco", "youtube_vis"):  # the same samples in the same steps
        assert ours.column(f"samples_{source}").equals(theirs.column(f"samples_{source}"))
    # The order of a sum in fp32 is all that differs, and Adam's first steps enlarge it.
    np.testing.assert_allclose(ours.column("loss"), theirs.column("loss"), rtol=1e-4)
    for name, tensor in stored.final.items():
        np.testing.assert_allclose(tensor, reference.final[name], rtol=1e-2, atol=2e-4, err_msg=name)


def test_a_diverging_run_names_the_step_and_keeps_the_checkpoint_before(
    reference, features, tmp_path, tiny_folder, ray_address
):
    losses = reference.log.column("loss").to_numpy()
    limit = float(np.sort(losses[2 * EVERY :])[-1]) - 1e-6  # exceeded once, or first by an earlier and larger one
    first = int(np.flatnonzero(losses > limit)[0]) + 1
    stage = Stage(features, tmp_path, tiny_folder, {"max_loss": limit})
    stored = Stored(stage.plan().output)
    assert stored.output.root_uri.rpartition("/")[2] != reference.output.root_uri.rpartition("/")[2]  # another run
    with pytest.raises(TrainingDiverged, match=f"step {first}") as diverged:
        stage.run(cluster=on(ray_address))
    assert (diverged.value.step, diverged.value.what) == (first, "loss")
    last = (first - 1) // EVERY * EVERY
    assert stored.steps == [step for step in (last - EVERY, last) if step > 0]
    assert stored.log.equals(reference.log.slice(0, first - 1))  # the way there
    assert state_of(stored) == "failed"


def test_a_run_on_s3_stores_what_one_in_a_folder_does(reference, s3_folder, tmp_path, tiny_folder, ray_address):
    features = write_store(s3_folder, tiny_folder)
    stage = Stage(features, f"{s3_folder}/runs", tiny_folder)
    stop = threading.Event()
    stored = Stored(stage.plan().output)
    stage.run(cluster=on(ray_address), stop=stop, on_progress=lambda progress: progress.step and stop.set())
    outcome = stage.run(cluster=on(ray_address))
    assert (outcome.state, outcome.step) == ("finished", NUM_STEPS)
    assert outcome.final_uri.startswith("s3://")
    assert stored.steps == [NUM_STEPS - EVERY, NUM_STEPS]
    assert stored.log.equals(reference.log)
    assert_equal_tensors(stored.final, reference.final)
    assert stage.run(cluster=NO_RAY).nothing_to_do


def test_a_controller_that_dies_ends_the_run_at_once(features, tmp_path, tiny_folder, ray_address):
    stage = Stage(features, tmp_path, tiny_folder)
    stored = Stored(stage.plan().output)
    with (
        at_checkpoint(stored, EVERY, lambda: kill_one("ray::TrainController")),
        pytest.raises(ClusterLost, match="Ray Train"),
    ):
        stage.run(cluster=on(ray_address))
    assert state_of(stored) == "failed"
    assert stored.steps[0] >= EVERY
    wait_until(lambda: not processes("ray::RayTrainWorker"), 30, "the end of the workers")


def test_workers_for_whom_there_is_no_place_end_the_run(features, tmp_path, tiny_folder, ray_address):
    stage = Stage(features, tmp_path, tiny_folder)
    with pytest.raises(PoolFailed, match=r"cluster\.num_workers.*cluster\.start_timeout_s"):
        stage.run(cluster=on(ray_address, num_workers=4, cpus_per_worker=64, start_timeout_s=3))
    wait_until(lambda: not processes("ray::TrainController"), 30, "the end of Ray Train's controller")
    with pytest.raises(ConfigurationError, match=r"training\.batch_size is 4"):
        stage.run(cluster=on(ray_address, num_workers=5))


def test_a_store_that_changed_under_the_run_is_told_once(features, tmp_path, tiny_folder, ray_address):
    stage = Stage(features, tmp_path, tiny_folder)
    plan = stage.plan()
    other = dataclasses.replace(plan, fingerprints={**plan.fingerprints, "store": "0" * 32})
    seen: list[TrainingProgress] = []
    with pytest.raises(ConfigurationError, match="not the one that this run was planned with"):
        stage.run(other, cluster=on(ray_address), on_progress=seen.append)
    assert not any(progress.num_restarts for progress in seen)


def reached(stored: Stored, step: int) -> bool:
    return any(found >= step for found in stored.steps)


def state_of(stored: Stored) -> str:
    return str(json.loads(stored.output.read("run.json"))["state"])


def start_driver(features: str, root: Path, model: Path) -> subprocess.Popen[bytes]:
    with (root / "log").open("ab") as log:
        command = [sys.executable, "-m", "tests.training.driver", *map(str, (features, root, model))]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def test_a_node_that_goes_with_a_notice_costs_nothing_that_was_done_before(features, tmp_path, tiny_folder):
    found = with_nodes(features, tmp_path, tiny_folder, "announced")
    assert found["noticed"] < found["saved"] < found["step"]
    assert found["kept"] == [found["saved"], found["step"]]  # no checkpoint was due
    assert (found["state"], found["workers"], found["restarts"]) == ("stopped", 1, 1)
    assert found["is_whole"]


def test_a_node_that_comes_is_used_and_the_order_of_samples_stays(features, tmp_path, tiny_folder):
    found = with_nodes(features, tmp_path, tiny_folder, "joining")
    assert (found["state"], found["workers"], found["restarts"]) == ("stopped", 2, 0)
    assert found["together"] <= found["step"]
    assert "resizing" in found["phases"]
    (run,) = tmp_path.glob("adapter-*")
    log = Stored(OutputFolder(str(run))).log
    assert log.column("step").to_pylist() == list(range(1, found["step"] + 1))
    # What arithmetic says of every step, whoever made it and however often.
    data = TrainingSet.open(features, TrainingConfig(**CONFIG))
    sources = [[ref.source for part in data.step_refs(step) for ref in part] for step in range(found["step"])]
    for number, source in enumerate(SOURCES):
        assert log.column(f"samples_{source}").to_pylist() == [step.count(number) for step in sources]


def test_a_driver_whose_own_node_dies_says_so(features, tmp_path, tiny_folder):
    # Whichever notices first: Ray's head, or Ray Train.
    assert re.search("has died|Ray Train gave up", with_nodes(features, tmp_path, tiny_folder, "own")["error"])


def with_nodes(features: str, root: Path, model: Path, which: str) -> dict:
    command = [sys.executable, "-m", "tests.training.nodes", *map(str, (features, root, model)), which]
    hurried = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | hurried, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
