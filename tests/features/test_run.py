"""Runs of precompute_features: the same bytes whatever the number of workers, the store, and what is killed."""

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ezigen.config import ConfigurationError, RayConfig, StackConfig
from tasks.features.budget import BudgetReached
from tasks.features.hardware import fit_cluster
from tasks.features.reader import FeatureStore
from tasks.features.run import index_features
from tasks.sharding import ShardProgress, ShardsFailed
from tasks.storage import OutputFolder
from tests.features.pairs_files import make_row, write_pairs
from tests.features.stage import Stage
from tests.run.conftest import wait_until
from tests.run.test_kills import assert_gone
from tests.stopping import stop_when_stored

pytestmark = pytest.mark.slow

NUM_PAIRS, NUM_SHARDS = 54, 18
ROWS = [
    make_row(index, subject=f"s{index % 40}", subject_class="cup", target=f"t{index // 2}", caption=f"a cup {index}")
    for index in range(NUM_PAIRS)
]
NO_RAY = RayConfig(address="127.0.0.1:1")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(str(folder), ROWS, pairs_per_shard=3)
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory, pairs, tiny_folder) -> Path:
    """The store as it is made here, without Ray, without interruption."""
    folder = tmp_path_factory.mktemp("reference")
    Stage(pairs, folder, tiny_folder).make_here()
    return folder


def stored_bytes(store: Path) -> dict[str, bytes]:
    """What a store consists of; how it came about (run.json, lease.json) and who needs what (plan.parquet) aside."""
    paths = [path for path in store.rglob("*") if path.is_file()]
    names = {path.relative_to(store).as_posix(): path for path in paths}
    return {
        name: path.read_bytes()
        for name, path in sorted(names.items())
        if name not in ("run.json", "lease.json", "plan.parquet")
    }


def modified(store: Path) -> dict[str, int]:
    """When each completion object was written."""
    return {path.name: path.stat().st_mtime_ns for path in (store / "samples").glob("r*.parquet")}


def state_of(store: Path) -> str:
    return json.loads((store / "run.json").read_text())["state"]


def workers() -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            if "MapWorker" in process.cmdline()[0]:
                yield process


def test_two_workers_of_which_one_is_killed_give_the_same_bytes(pairs, reference, tmp_path, tiny_folder, ray_address):
    seen: list[ShardProgress] = []
    killed: list[int] = []

    def watch(progress: ShardProgress) -> None:
        seen.append(progress)
        if progress.shards_done and not killed:
            for process in list(workers())[:1]:
                killed.append(process.pid)
                process.kill()

    stage = Stage(pairs, tmp_path / "store", tiny_folder)
    outcome = stage.run(cluster=RayConfig(address=ray_address, num_workers=2), on_progress=watch)
    assert killed
    assert stored_bytes(tmp_path / "store") == stored_bytes(reference)
    assert (outcome.state, outcome.shards_made, outcome.shards_kept) == ("finished", NUM_SHARDS, 0)
    assert (outcome.pairs, outcome.subjects, outcome.targets, outcome.texts) == (NUM_PAIRS, 40, 27, NUM_PAIRS)
    assert outcome.num_bytes["subjects"] == sum(
        path.stat().st_size for path in (tmp_path / "store" / "subjects").iterdir()
    )
    assert (seen[-1].unit, seen[-1].done, seen[-1].total, seen[-1].shards_done) == ("subjects", 40, 40, NUM_SHARDS)
    assert state_of(tmp_path / "store") == "finished"

    before = stored_bytes(tmp_path / "store")
    again = stage.run(cluster=NO_RAY)  # where no Ray can be
    assert (again.nothing_to_do, again.subjects, again.shards_kept) == (True, 40, NUM_SHARDS)
    assert again.manifest_uri == index_features(stage.plan(), stage.output)
    assert stored_bytes(tmp_path / "store") == before


def test_a_damaged_shard_is_made_again_alone(pairs, reference, tmp_path, tiny_folder, ray_address):
    stage = Stage(pairs, tmp_path / "store", tiny_folder)
    stage.make_here()
    path = tmp_path / "store" / "subjects" / "r0-00002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (tmp_path / "store" / "latents" / ".partial-0123").write_bytes(b"left by a killed writer")
    os.utime(tmp_path / "store" / "latents" / ".partial-0123", (0, 0))
    times = modified(tmp_path / "store")
    assert stage.plan().finished  # by the sizes alone, all is well

    plan = stage.plan(verify=True)
    assert (plan.finished, plan.damaged, plan.to_do) == (False, ("r0-00002",), ("r0-00002",))
    assert any("damaged" in label for label, _ in plan.describe())
    outcome = stage.run(plan, cluster=RayConfig(address=ray_address, num_workers=1))
    assert (outcome.shards_made, outcome.shards_repaired, outcome.shards_kept) == (1, 1, NUM_SHARDS - 1)
    assert stored_bytes(tmp_path / "store") == stored_bytes(reference)
    changed = {name for name, time in modified(tmp_path / "store").items() if times[name] != time}
    assert changed == {"r0-00002.parquet"}
    assert stage.plan(verify=True).finished


def test_a_stopped_run_goes_on_where_it_ended_even_beside_damaged_pairs(
    pairs, reference, tmp_path, tiny_folder, ray_address
):
    stop = threading.Event()
    store, cluster = tmp_path / "store", RayConfig(address=ray_address, num_workers=1)
    stage = Stage(pairs, store, tiny_folder)
    with stop_when_stored(store / "samples", stop):
        outcome = stage.run(cluster=cluster, stop=stop)
    assert outcome.stopped
    assert state_of(store) == "stopped"
    assert 1 <= outcome.shards_made == len(modified(store)) < NUM_SHARDS
    assert not (store / "manifest.json").exists()
    with pytest.raises(ConfigurationError, match="finished"):
        FeatureStore.open(str(store))
    with pytest.raises(ConfigurationError, match=f"lacks {NUM_SHARDS - outcome.shards_made} shards"):
        index_features(stage.plan(), stage.output)

    times = modified(store)
    damaged = pairs / "pairs" / f"r0-{NUM_SHARDS - 1:05d}.parquet"
    data = damaged.read_bytes()
    at = data.index(b"\x89PNG") + 100
    damaged.write_bytes(data[:at] + b"?" + data[at + 1 :])
    try:
        with pytest.raises(ShardsFailed, match=f"r0-{NUM_SHARDS - 1:05d}") as failed:
            stage.run(cluster=cluster)
    finally:
        damaged.write_bytes(data)
    assert len(failed.value.failures) == 1
    assert str(damaged) in str(failed.value)
    assert state_of(store) == "failed"
    assert len(modified(store)) == NUM_SHARDS - 1  # all others are stored

    assert stage.run(cluster=cluster).shards_made == 1
    assert stored_bytes(store) == stored_bytes(reference)
    assert {name: modified(store)[name] for name in times} == times  # nothing was made twice


def test_a_run_ends_at_its_budget_and_a_larger_one_lets_it_go_on(pairs, tmp_path, tiny_folder, ray_address):
    # Batches that are mostly filled up make a shard take longer than its report takes to the driver, as real ones do.
    slow = {"batch_size": 64}
    reference = tmp_path / "reference"
    Stage(pairs, reference, tiny_folder, **slow).make_here()
    store, cluster = tmp_path / "store", RayConfig(address=ray_address, num_workers=1)
    stage = Stage(pairs, store, tiny_folder, **slow)
    whole = sum(path.stat().st_size for path in reference.glob("*/*.parquet")) / 2**30
    plan = stage.plan()

    def limited(gib: float):  # as if the plan had reckoned with less than there is
        return dataclasses.replace(stage.plan(), inputs=plan.inputs.model_copy(update={"max_gib": gib}))

    with pytest.raises(BudgetReached, match=r"inputs\.max_gib .*run again, it continues"):
        stage.run(limited(0.5 * whole), cluster=cluster)
    kept = modified(store)
    assert 1 <= len(kept) < NUM_SHARDS
    assert sum(path.stat().st_size for path in store.glob("*/*.parquet")) / 2**30 <= 0.5 * whole
    assert state_of(store) == "failed"
    assert not (store / "manifest.json").exists()
    with pytest.raises(BudgetReached):
        stage.run(limited(sum(path.stat().st_size for path in store.glob("*/*.parquet")) / 2**30), cluster=NO_RAY)
    assert modified(store) == kept

    outcome = stage.run(limited(1.05 * whole), cluster=cluster)
    assert (outcome.state, outcome.shards_kept) == ("finished", len(kept))
    assert stored_bytes(store) == stored_bytes(reference)
    assert {name: modified(store)[name] for name in kept} == kept


def test_a_killed_driver_leaves_nothing_that_the_next_run_does_not_finish(
    pairs, reference, tmp_path, tiny_folder, ray_address
):
    store = tmp_path / "store"
    process = start_driver(pairs, store, tiny_folder)
    few = random.Random().randint(1, 6)
    wait_until(lambda: len(modified(store)) >= few or process.poll() is not None, 120, f"{few} stored shards")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert_gone(children)
    kept = modified(store)
    assert few <= len(kept) < NUM_SHARDS, (tmp_path / "log").read_text()

    outcome = Stage(pairs, store, tiny_folder).run(cluster=RayConfig(address=ray_address, num_workers=1))
    assert (outcome.state, outcome.subjects, outcome.shards_made) == ("finished", 40, NUM_SHARDS - len(kept))
    assert {name: modified(store)[name] for name in kept} == kept
    assert stored_bytes(store) == stored_bytes(reference)


def start_driver(pairs: Path, store: Path, model: Path) -> subprocess.Popen[bytes]:
    with (store.parent / "log").open("ab") as log:
        command = [sys.executable, "-m", "tests.features.driver", *map(str, (pairs, store, model))]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def test_pairs_and_store_on_s3_are_those_of_a_folder(tmp_path, s3_folder, tiny_folder, ray_address):
    for root in (str(tmp_path), s3_folder):
        write_pairs(f"{root}/pairs", ROWS[:9], pairs_per_shard=3)
    Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder).make_here()
    reference = stored_bytes(tmp_path / "store")
    stage = Stage(f"{s3_folder}/pairs", f"{s3_folder}/store", tiny_folder)
    outcome = stage.run(cluster=RayConfig(address=ray_address, num_workers=1))
    assert (outcome.state, outcome.shards_made) == ("finished", 3)
    output = OutputFolder(f"{s3_folder}/store")
    assert {name: output.read(name) for name in reference} == reference
    assert stage.run(cluster=NO_RAY).nothing_to_do

    filesystem, path = output.filesystem, output.path("subjects/r0-00001.parquet")
    data = bytearray(filesystem.cat_file(path))
    data[len(data) // 2] ^= 1
    filesystem.pipe_file(path, bytes(data))
    assert stage.plan(verify=True).damaged == ("r0-00001",)


def test_the_model_s_device_and_the_cluster_s_accelerator_fit_together():
    assert fit_cluster(RayConfig(), StackConfig(device="cpu")).accelerator == "cpu"
    assert fit_cluster(RayConfig(), StackConfig(device="cuda")).accelerator == "gpu"
    assert fit_cluster(RayConfig(accelerator="cpu"), StackConfig()).accelerator == "cpu"
    with pytest.raises(ConfigurationError, match=r"cluster\.accelerator"):
        fit_cluster(RayConfig(accelerator="gpu"), StackConfig(device="cpu"))
