"""Baselines beside an adapter: real tiny pipelines on Ray, stopped, killed, spoiled and run again."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ezigen.baselines import BaselineRequest, load_baseline
from ezigen.config import BenchmarkConfig, ClusterConfig, ConfigurationError, StackConfig
from ezigen.images import decode_picture
from ezigen.models import load_stack
from tasks.evaluation import read_benchmark
from tasks.evaluation.baselines import BaselineWork, plan_baselines, read_baseline
from tasks.evaluation.plan import plan_evaluation
from tasks.storage import Locations
from tests.evaluation.baseline_runs import TABLE, BaselineRun
from tests.tiny import build_tiny_stack
from tests.tiny_pipelines import build_tiny_ip_adapter

pytestmark = pytest.mark.slow

NO_RAY = ClusterConfig(address="127.0.0.1:1")


@pytest.fixture(scope="module")
def cluster(ray_address):
    return ClusterConfig(address=ray_address, num_workers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("baselines")
    model = build_tiny_stack(root / "model")
    build_tiny_ip_adapter(root / "ip-adapter", load_stack(str(model), device="cpu").unet)
    return root


@pytest.fixture(scope="module")
def finished(folder, cluster):
    run = BaselineRun(folder, cases_per_shard=3)
    assert run.plan().num_images == run.plan().num_cases == 12
    (table,) = run.run(cluster)
    return run, table


@pytest.fixture
def copy(finished, folder, tmp_path):
    """The finished evaluation, to be spoiled."""
    shutil.copytree(folder / "out", tmp_path / "out")
    return BaselineRun(folder, str(tmp_path / "out"))


def work_of(run, name):
    (planned,) = (one for one in plan_baselines(run.configs, run.benchmark, run.output) if one.name == name)
    locations = Locations(allowed_roots=(str(run.folder),), base_uri=str(run.folder))
    folder = planned.folder(run.output)
    work = BaselineWork(folder, planned.make_shards(), planned.config, StackConfig(device="cpu"), locations)
    work.open()
    return work


# ---- a whole evaluation


def test_baselines_are_made_measured_and_tabled(finished):
    run, table = finished
    assert [(row.title, row.missing) for row in table.rows] == [("text only", 0), ("Plain", 0), ("IP-Adapter", 0)]
    assert all(row.means["dino"].count == row.means["seconds"].count == 4 for row in table.rows)
    rows = pq.read_table(run.output.path("shipped/images.parquet")).to_pylist()
    assert [row["variant"] for row in rows[4:]] == ["Plain"] * 4 + ["IP-Adapter"] * 4
    for row in rows[4:]:
        assert row["image_uri"].startswith("baselines/")
        assert row["image_uri"].endswith(f"/{row['case_id']}.png")
        assert row["seconds"] > 0


@pytest.mark.parametrize("name", ["Plain", "IP-Adapter"])
def test_each_image_is_that_of_its_case(finished, name):
    run, _ = finished
    baseline = load_baseline(run.configs[name], device=torch.device("cpu"), dtype=torch.float32)
    for case in run.benchmark.cases:
        pictures = tuple(decode_picture(Path(uri).read_bytes()) for uri in case.subject_uris)
        (expected,) = baseline.make([BaselineRequest(case.prompt, case.seed, pictures)])
        stored = decode_picture(run.images()[f"{name}/{case.case_id}"].read_bytes()).rgb
        assert stored.tobytes() == expected.tobytes()


def test_a_finished_evaluation_needs_neither_ray_nor_the_networks(finished, copy):
    assert copy.plan().num_images == 0
    assert copy.run(NO_RAY) == (finished[1],)


# ---- again


def test_only_what_is_missing_is_made_again_and_it_is_the_same(finished, copy, cluster):
    images = copy.images()
    gone = images["IP-Adapter/" + copy.benchmark.cases[2].case_id]
    gone.unlink()
    before = {path: path.stat().st_mtime_ns for path in images.values() if path != gone}
    assert copy.plan().num_images == 1
    (table,) = copy.run(cluster)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert gone.read_bytes() == finished[0].images()["IP-Adapter/" + copy.benchmark.cases[2].case_id].read_bytes()
    assert table.rows[1] == finished[1].rows[1]
    assert table.rows[2].means["dino"] == finished[1].rows[2].means["dino"]


def test_images_without_a_record_are_taken_as_they_are(finished, copy):
    """A worker that was killed between an image and its record."""
    planned = plan_baselines(copy.configs, copy.benchmark, copy.output)[0]
    shutil.rmtree(planned.folder(copy.output).path("ended"))
    assert copy.plan().num_images == 0
    found = read_baseline(planned, copy.output).images
    expected = read_baseline(planned, finished[0].output).images
    assert {case_id: one.sha256 for case_id, one in found.items()} == {
        case_id: one.sha256 for case_id, one in expected.items()
    }
    assert all(one.seconds is None for one in found.values())
    assert all(one.seconds for one in expected.values())


def test_a_shard_that_is_tried_again_keeps_what_its_first_worker_stored(folder):
    run = BaselineRun(folder, "tried", cases_per_shard=4)
    work = work_of(run, "Plain")
    (shard,) = work.shards
    work.make(shard)
    first, *others = run.images().values()
    first.unlink()
    before = [path.stat().st_mtime_ns for path in others]
    assert work.make(shard).rows == 4
    assert first.exists()
    assert [path.stat().st_mtime_ns for path in others] == before


def test_a_stopped_evaluation_keeps_its_images_and_goes_on(finished, folder, cluster):
    run = BaselineRun(folder, "stopped")
    stop, titles = threading.Event(), set()

    def told(title, progress):
        titles.add(title)
        if title == "Plain on mini-dreambench" and progress.done:
            stop.set()

    assert run.run(cluster, on_progress=told, stop=stop) == ()
    assert titles == {"text only", "Plain on mini-dreambench"}
    stored = {path: path.stat().st_mtime_ns for path in run.images().values()}
    assert stored
    assert run.plan().num_images == 8 - len(stored) > 0
    (table,) = run.run(cluster)
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert [row.means["dino"] for row in table.rows] == [row.means["dino"] for row in finished[1].rows]


def test_a_killed_evaluation_goes_on(finished, folder, cluster):
    command = [sys.executable, "-m", "tests.evaluation.baseline_runs", str(folder), cluster.address, "killed"]
    run = BaselineRun(folder, "killed")
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])  # its environment holds the key of this Ray
    try:
        deadline = time.monotonic() + 240
        while not run.images():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert run.plan().num_images > 0
    (table,) = run.run(cluster)
    assert [row.means["dino"] for row in table.rows] == [row.means["dino"] for row in finished[1].rows]
    for name, path in finished[0].images().items():
        assert run.images()[name].read_bytes() == path.read_bytes()


# ---- what goes wrong


def test_a_case_that_cannot_be_made_says_why_and_stops_no_other(folder, cluster, tmp_path, caplog):
    for name in ("benchmark", "model", "ip-adapter"):
        shutil.copytree(folder / name, tmp_path / name)
    run = BaselineRun(tmp_path)
    picture = Path(run.benchmark.cases[0].subject_uris[0])
    whole = picture.read_bytes()
    picture.write_bytes(b"no picture any more")  # after the benchmark was read
    with caplog.at_level("WARNING"):
        (table,) = run.run(cluster)
    assert [(row.title, row.missing) for row in table.rows][1:] == [("Plain", 2), ("IP-Adapter", 2)]
    assert f"case {run.benchmark.cases[0].case_id} cannot be made" in caplog.text
    rows = pq.read_table(run.output.path("shipped/images.parquet")).to_pylist()
    shown = {(row["variant"], row["case_id"]): row for row in rows}
    spoiled = [case.case_id for case in run.benchmark.cases[:2]]
    assert all(shown["IP-Adapter", case_id]["error"].startswith("image_undecodable") for case_id in spoiled)
    assert all(shown["IP-Adapter", case_id]["image_uri"] is None for case_id in spoiled)
    assert all(shown["Plain", case_id]["image_uri"] for case_id in spoiled)  # made, but not to be measured

    picture.write_bytes(whole)
    assert [one.cases for one in run.plan().parts[0].baselines] == [(), run.benchmark.cases[:2]]
    work = work_of(run, "IP-Adapter")
    for shard in work.shards:
        work.make(shard)
    assert not read_baseline(run.plan().parts[0].baselines[1], run.output).errors


def test_editing_is_refused(folder, finished):
    config = BenchmarkConfig(kind="mini-dreamedit", folder_uri=str(folder / "edits"), num_subjects=1)
    with pytest.raises(ConfigurationError, match="baselines Plain, IP-Adapter: mini-dreamedit is a benchmark of edit"):
        plan_baselines(finished[0].configs, read_benchmark(config), finished[0].output)


def test_people_are_a_benchmark_like_any_other(folder, finished):
    config = BenchmarkConfig(kind="mini-people", folder_uri=str(folder / "people"), num_subjects=1, num_prompts=2)
    benchmark = read_benchmark(config)
    planned = plan_baselines(finished[0].configs, benchmark, finished[0].output)
    assert [one.cases for one in planned] == [benchmark.cases, benchmark.cases]


def test_other_settings_and_other_cases_are_made_apart(folder, finished):
    run, _ = finished
    config = run.configs["Plain"]
    fewer = read_benchmark(
        BenchmarkConfig(kind="mini-dreambench", folder_uri=str(folder / "benchmark"), num_subjects=1)
    )
    others = {
        **run.configs,
        "steps": config.model_copy(update={"num_steps": 3}),
        "guidance": config.model_copy(update={"guidance_scale": 3.0}),
    }
    planned = plan_baselines(others, run.benchmark, run.output)
    assert [len(one.cases) for one in planned] == [0, 0, 4, 4]
    digests = {one.digest for one in (*planned, *plan_baselines(run.configs, fewer, run.output))}
    assert len(digests) == 6


def test_a_damaged_record_is_named(copy):
    planned = plan_baselines(copy.configs, copy.benchmark, copy.output)[0]
    output = planned.folder(copy.output)
    (name, *_) = output.list("ended")
    output.write(f"ended/{name}", b"{")
    with pytest.raises(ConfigurationError, match=f"{name} is not a record of images"):
        copy.plan()


@pytest.mark.parametrize("name", ["text_only", "other"])
def test_a_name_is_that_of_one_line(finished, name):
    run, _ = finished
    plan = run.plan()
    others = [read_baseline(plan.parts[0].baselines[1], run.output)]
    planned = plan_baselines({name: run.configs["Plain"]}, run.benchmark, run.output)
    other = type(others[0])("other", others[0].root_uri, others[0].images)
    roots = [str(run.folder / "benchmark")]
    with pytest.raises(ConfigurationError, match=f"baseline {name}: this is the name of another line"):
        plan_evaluation(
            plan.method,
            run.output,
            [run.benchmark],
            [TABLE],
            allowed_roots=roots,
            others={run.benchmark.name: [other]},
            baselines={run.benchmark.name: planned},
        )
