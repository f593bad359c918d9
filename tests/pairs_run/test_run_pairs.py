"""Runs of build_pairs: the same bytes whatever the number of workers, the store, and what is killed on the way."""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from ezigen.config import PairInputs
from tasks.pairs import TooManyRefused
from tasks.pairs.schema import PAIRS_SCHEMA
from tasks.sharding import ShardProgress
from tasks.storage import OutputFolder
from tests.pairs_run.conftest import CONFIG, Build, World, read_pairs, stored_bytes
from tests.run.conftest import wait_until
from tests.run.test_kills import assert_gone
from tests.stopping import stop_when_stored

pytestmark = pytest.mark.slow


def test_the_pairs_are_what_the_schema_says(reference):
    table = read_pairs(reference)
    assert table.schema.remove_metadata().equals(PAIRS_SCHEMA)
    rows = table.to_pylist()
    assert len({row["pair_id"] for row in rows}) == len(rows) == 70
    for row in rows:
        assert row["pair_id"].startswith(row["group_id"] + "/")
        for column, checksum in (
            ("subject", "subject_sha256"),
            ("subject_mask", "mask_sha256"),
            ("target", "target_sha256"),
        ):
            assert hashlib.sha256(row[column]).hexdigest() == row[checksum]
            assert Image.open(io.BytesIO(row[column])).size == (256, 256)
        mask = np.asarray(Image.open(io.BytesIO(row["subject_mask"])))
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.any()
        assert (row["frame_distance"] is None) == (row["source"] == "coco")
        assert 0 < row["mask_share"] < 1
        x, y, width, height = row["target_box"]
        assert 0 <= x <= x + width <= 256 + 1e-6
        assert 0 <= y <= y + height <= 256 + 1e-6
    for path in (reference / "pairs").iterdir():
        ids = read_pairs_of(path)
        assert ids == sorted(ids)


def read_pairs_of(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=["pair_id"]).column(0).to_pylist()


def test_the_manifest_lists_every_object_with_its_checksum(reference):
    import xxhash

    manifest = json.loads((reference / "manifest.json").read_text())
    files = [stored for shard in manifest["shards"] for stored in shard["files"]]
    for stored in files:
        data = (reference / stored["path"]).read_bytes()
        assert (len(data), xxhash.xxh3_128_hexdigest(data)) == (stored["num_bytes"], stored["xxh3"])
    listed = {stored["path"] for stored in files}
    assert listed == {path for path in stored_bytes(reference) if path.startswith(("pairs/", "refusals/"))}
    assert manifest["rows"] == sum(shard["rows"] for shard in manifest["shards"]) == 70
    assert (manifest["kind"], manifest["counts"]["built"]) == ("pairs", {"coco": 40, "youtube_vis": 30})


def test_more_workers_give_the_same_bytes(world, reference, tmp_path, ray_address):
    """Four of them; two are compared where one of them is killed."""
    seen: list[ShardProgress] = []
    outcome = Build(world.inputs(tmp_path)).run(ray_address, 4, on_progress=seen.append)
    assert stored_bytes(tmp_path) == stored_bytes(reference)
    assert (outcome.state, outcome.built, outcome.shards_kept) == ("finished", 70, 0)
    assert outcome.per_source["coco"].missing == 0
    assert (seen[-1].total, seen[-1].done, seen[-1].unit) == (70, 70, "pairs")
    assert seen[-1].shards_done == seen[-1].shards_total == outcome.shards_made


def test_a_finished_set_needs_no_ray_and_a_damaged_shard_is_built_alone(world, reference, tmp_path, ray_address):
    output = tmp_path / "out"
    shutil.copytree(reference, output)
    plan = Build(world.inputs(reference)).plan()
    assert plan.finished
    again = Build(world.inputs(reference)).run("127.0.0.1:1")  # where no Ray can be
    assert (again.nothing_to_do, again.built, again.shards_kept) == (True, 70, len(plan.shards))

    (output / f"pairs/{plan.shards[1]}.parquet").write_bytes(b"cut off")
    (output / "refusals/.partial-0123").write_bytes(b"left by a killed writer")
    os.utime(output / "refusals/.partial-0123", (0, 0))
    repaired = Build(world.inputs(output)).run(ray_address, 1)
    assert (repaired.shards_made, repaired.shards_kept) == (1, len(plan.shards) - 1)
    assert stored_bytes(output) == stored_bytes(reference)


def test_a_killed_worker_costs_nothing(world, reference, tmp_path, ray_address):
    killed: list[int] = []

    def kill_one(progress: ShardProgress) -> None:
        workers = [p for p in psutil.Process().children(recursive=True) if "MapWorker" in p.name() + title(p)]
        if progress.shards_done and not killed and workers:
            killed.append(workers[0].pid)
            workers[0].kill()

    outcome = Build(world.inputs(tmp_path)).run(ray_address, 2, on_progress=kill_one)
    assert killed
    assert outcome.state == "finished"
    assert stored_bytes(tmp_path) == stored_bytes(reference)


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        return process.cmdline()[0]
    return ""


def test_a_stopped_run_goes_on_where_it_ended(world, reference, tmp_path, ray_address):
    stop = threading.Event()
    with stop_when_stored(tmp_path / "pairs", stop):
        outcome = Build(world.inputs(tmp_path)).run(ray_address, 1, stop=stop)
    assert outcome.state == "stopped"
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "stopped"
    assert 1 <= outcome.shards_made == len(list((tmp_path / "pairs").iterdir())) < 12
    assert not (tmp_path / "manifest.json").exists()
    rest = Build(world.inputs(tmp_path)).run(ray_address)
    assert rest.shards_kept == outcome.shards_made
    assert stored_bytes(tmp_path) == stored_bytes(reference)


def test_a_killed_driver_leaves_nothing_that_the_next_run_does_not_finish(world, reference, tmp_path):
    output, rng = tmp_path / "out", random.Random()
    for num_stored in (0, rng.randint(1, 4)):
        process = start_driver(world.inputs(output), tmp_path)
        wait_until(
            lambda n=num_stored, p=process: (
                (len(list(output.glob("pairs/r*"))) >= n and output.exists()) or p.poll() is not None
            ),
            120,
            f"{num_stored} stored shards",
        )
        time.sleep(rng.uniform(0.0, 0.4))
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert_gone(children)
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("pairs/r*")}
    process = start_driver(world.inputs(output), tmp_path)
    assert process.wait(120) == 0, (tmp_path / "log").read_text()
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome == {"state": "finished", "built": 70, "made": len(list(output.glob("pairs/r*"))) - len(kept)}
    assert {name: (output / "pairs" / name).stat().st_mtime_ns for name in kept} == kept  # nothing was built twice
    assert stored_bytes(output) == stored_bytes(reference)


def start_driver(inputs: PairInputs, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.pairs_run.driver", inputs.model_dump_json()],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def test_data_and_pairs_on_s3_are_those_of_a_folder(world, reference, s3_folder, ray_address):
    output = OutputFolder(f"{s3_folder}/out")
    for folder in (world.coco, world.youtube_vis):
        output.filesystem.put(
            f"{folder}/", f"{output.root.path}/../{folder.name}/".replace("out/../", ""), recursive=True
        )
    inputs = world.inputs(output.root_uri, coco_uri=f"{s3_folder}/coco", youtube_vis_uri=f"{s3_folder}/videos")
    outcome = Build(inputs).run(ray_address, 1)
    assert outcome.built == 70
    columns = [name for name in PAIRS_SCHEMA.names if name != "target_uri"]
    here = read_pairs(reference, columns).sort_by("pair_id")
    assert read_s3_pairs(output, columns).sort_by("pair_id").equals(here)
    assert Build(inputs).run("127.0.0.1:1").nothing_to_do


def read_s3_pairs(output: OutputFolder, columns: list[str]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = output.list("pairs")
    return pa.concat_tables(
        [pq.read_table(io.BytesIO(output.read(f"pairs/{name}")), columns=columns) for name in names]
    )


@pytest.fixture
def damaged(world, tmp_path) -> World:
    """A copy of the world in which every fourth picture of COCO is cut off."""
    copy = World(tmp_path / "coco", world.youtube_vis)
    shutil.copytree(world.coco, copy.coco)
    for path in sorted((copy.coco / "train2014").iterdir())[::4]:
        path.write_bytes(path.read_bytes()[:300])
    return copy


def test_further_rounds_make_up_for_damaged_pictures(damaged, tmp_path, ray_address):
    inputs = damaged.inputs(tmp_path / "out", num_youtube_vis_pairs=0)
    outcome = Build(inputs).run(ray_address, 2)
    assert (outcome.state, outcome.built) == ("finished", 40)
    assert outcome.num_rounds > 1
    assert outcome.refused["picture_undecodable"] > 0
    names = {path.name[:2] for path in (tmp_path / "out/pairs").iterdir()}
    assert names == {f"r{number}" for number in range(outcome.num_rounds)}
    ids = read_pairs(tmp_path / "out", ["pair_id"]).column(0).to_pylist()
    assert len(set(ids)) == 40

    alone = Build(inputs.model_copy(update={"output_uri": str(tmp_path / "alone")}))
    alone.run(ray_address, 1)
    assert stored_bytes(tmp_path / "alone") == stored_bytes(tmp_path / "out")


def test_where_most_pictures_are_missing_the_rest_is_found_and_no_more(world, tmp_path, ray_address):
    copy = World(tmp_path / "coco", world.youtube_vis)
    shutil.copytree(world.coco, copy.coco)
    pictures = sorted((copy.coco / "train2014").iterdir())
    for number, path in enumerate(pictures):
        if number % 8:
            path.unlink()
    outputs = [tmp_path / f"of-{num_workers}" for num_workers in (1, 2)]
    for num_workers, output in enumerate(outputs, start=1):
        inputs = copy.inputs(output, num_youtube_vis_pairs=0, num_coco_pairs=8, max_refused_share=1.0)
        outcome = Build(inputs).run(ray_address, num_workers)
        assert (outcome.state, outcome.built) == ("finished", 8)
        assert outcome.num_rounds > 2
        assert outcome.built + sum(outcome.refused.values()) < outcome.per_source["coco"].candidates
    assert stored_bytes(outputs[0]) == stored_bytes(outputs[1])


def test_a_run_stopped_between_two_rounds_is_not_finished(damaged, tmp_path, ray_address):
    build = Build(damaged.inputs(tmp_path / "out", num_youtube_vis_pairs=0))
    num_shards, stop = len(build.plan().shards), threading.Event()
    with stop_when_stored(tmp_path / "out/pairs", stop, num_shards):
        outcome = build.run(ray_address, 2, stop=stop)
    assert (outcome.state, outcome.num_rounds) == ("stopped", 1)
    assert outcome.built < 40
    assert not (tmp_path / "out/manifest.json").exists()
    assert build.run(ray_address, 2).built == 40


def test_refusals_that_others_make_up_for_are_no_failure(world, tmp_path, ray_address):
    # Draws of two frames are refused again and again where an object is small in most of them.
    config = CONFIG.model_copy(update={"youtube_vis": CONFIG.youtube_vis.model_copy(update={"min_mask_share": 0.06})})
    inputs = world.inputs(tmp_path / "enough", num_coco_pairs=0, num_youtube_vis_pairs=12, max_refused_share=0.0)
    outcome = Build(inputs, config).run(ray_address, 1)
    assert (outcome.state, outcome.built) == ("finished", 12)
    assert sum(outcome.refused.values()) > outcome.built
    more = inputs.model_copy(update={"output_uri": str(tmp_path / "all"), "num_youtube_vis_pairs": 10**6})
    with pytest.raises(TooManyRefused, match="pairs are missing because their candidates were refused") as failed:
        Build(more, config).run(ray_address, 1)
    assert failed.value.outcome.expected == failed.value.outcome.per_source["youtube_vis"].candidates < 10**6


def test_a_set_that_stays_too_small_is_finished_and_too_many_refusals_are_not(damaged, tmp_path, ray_address):
    inputs = damaged.inputs(tmp_path, num_youtube_vis_pairs=0, num_coco_pairs=10**6, max_refused_share=0.01)
    build = Build(inputs)
    with pytest.raises(TooManyRefused, match=r"inputs\.max_refused_share") as failed:
        build.run(ray_address, 1)
    outcome = failed.value.outcome
    candidates = outcome.per_source["coco"].candidates
    assert outcome.state == json.loads((tmp_path / "run.json").read_text())["state"] == "failed"
    assert outcome.built + sum(outcome.refused.values()) == candidates
    assert outcome.per_source["coco"].missing == 10**6 - outcome.built
    assert (tmp_path / "manifest.json").exists()
    with pytest.raises(TooManyRefused):
        build.run("127.0.0.1:1")  # everything is there: no Ray is needed to say it again
