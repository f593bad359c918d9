"""prefect.yaml against what a server holds after deploying it: Prefect leaves out unknown keys without a word."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterTags
from prefect.client.schemas.objects import State
from prefect.states import Cancelling

from ezigen.config import balanced, embedded
from flows.build_pairs import build_pairs
from flows.evaluate_adapter import evaluate_adapter
from flows.parameters import PipelineParameters
from flows.personalize_catalog import personalize_catalog
from flows.pipeline_job import check_early
from flows.planning import read_image_size
from flows.precompute_features import precompute_features
from flows.run_pipeline import run_pipeline
from flows.train_adapter import train_adapter
from tasks.catalog.results import ResultRow
from tasks.storage import RunOutput
from tests.flows.conftest import ROOT, Server
from tests.run.catalogs import write_catalog

NAME = "personalize_catalog/nightly"
NAMES = {
    "nightly": NAME,
    "build-pairs": "build_pairs/build-pairs",
    "precompute-features": "precompute_features/precompute-features",
    "train-adapter": "train_adapter/train-adapter",
    "evaluate-adapter": "evaluate_adapter/evaluate-adapter",
    "run-pipeline": "run_pipeline/run-pipeline",
}
SERVER_DEFAULTS = {"day_or": True}


@pytest.fixture(scope="module")
def deployed(prefect_server: Server) -> Server:
    with prefect_server.client() as client:
        client.create_work_pool(WorkPoolCreate(name="ezigen", type="process"))
    prefect_server.prefect("--no-prompt", "deploy", "--all")
    return prefect_server


def commit() -> str:
    """The version of what is deployed from here."""
    command = ["git", "describe", "--always", "--dirty", "--tags"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def read_written(name: str) -> dict:
    """The deployment of that name in prefect.yaml."""
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {deployment["name"] for deployment in deployments} == set(NAMES)
    return next(deployment for deployment in deployments if deployment["name"] == name)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_the_file_reaches_the_server(deployed, name):
    written = read_written(name)
    with deployed.client() as client:
        stored = client.read_deployment_by_name(NAMES[name])
        flow = client.read_flow(stored.flow_id)
    limit, strategy = written.pop("concurrency_limit").values()
    schedules = written.pop("schedules")
    pool = written.pop("work_pool")
    assert flow.name == NAMES[name].partition("/")[0]
    assert (written.pop("version"), stored.version) == ("{{ commit.stdout }}", commit())
    assert {key: getattr(stored, key) for key in written} == written
    assert stored.global_concurrency_limit.limit == limit
    assert stored.concurrency_options.collision_strategy.value == strategy
    for stored_schedule, schedule in zip(stored.schedules, schedules, strict=True):
        assert stored_schedule.active is schedule.pop("active") is False
        assert stored_schedule.slug == schedule.pop("slug")
        assert stored_schedule.schedule.model_dump(exclude_none=True) == schedule | SERVER_DEFAULTS
    assert stored.work_pool_name == pool.pop("name")
    assert {key: getattr(stored, key) for key in pool} == pool
    assert stored.paused is False


def test_the_nightly_deployment_has_a_schedule_that_sleeps():
    (schedule,) = read_written("nightly")["schedules"]
    assert schedule["active"] is False


def test_the_parameters_of_the_training_data_fit_their_flows_and_each_other():
    pairs = build_pairs.validate_parameters(read_written("build-pairs")["parameters"])
    features = precompute_features.validate_parameters(read_written("precompute-features")["parameters"])
    assert features["inputs"].pairs_uri == pairs["inputs"].output_uri
    assert pairs["pairs"].size_px == read_image_size(features["model"].model)


def test_the_parameters_of_training_fit_their_flows_and_what_comes_before():
    features = precompute_features.validate_parameters(read_written("precompute-features")["parameters"])
    training = train_adapter.validate_parameters(read_written("train-adapter")["parameters"])
    assert training["inputs"].features_uri == features["inputs"].output_uri
    assert training["model"] == features["model"]
    evaluation = evaluate_adapter.validate_parameters(read_written("evaluate-adapter")["parameters"])
    assert evaluation["inputs"].adapter == f"{training['inputs'].name}@{training['inputs'].alias}"
    assert evaluation["inputs"].adapters_uri == training["inputs"].adapters_uri
    assert evaluation["model"] == training["model"]
    pipeline = run_pipeline.validate_parameters(read_written("run-pipeline")["parameters"])
    check_early(
        PipelineParameters(**pipeline | {"inputs": pipeline["inputs"].model_copy(update={"storage_block": "x"})})
    )
    assert pipeline["training"] == training["training"]
    assert pipeline["monitoring"] == training["monitoring"]


def test_the_parameters_fit_the_flow_and_exist():
    written = read_written("nightly")
    given = personalize_catalog.validate_parameters(written["parameters"])
    assert (ROOT / given["inputs"].catalog_uri).is_file()
    assert given["model"].model == "mini"
    assert given["sampler"] == balanced(embedded())


def test_the_form_refuses_what_the_flow_refuses(deployed):
    with deployed.client() as client:
        deployment = client.read_deployment_by_name(NAME)
        parameters = deployment.parameters | {"sampler": {"num_steps": 0}}
        with pytest.raises(Exception, match="0 is less than the minimum of 1"):
            client.create_flow_run_from_deployment(deployment.id, parameters=parameters)


def test_a_schedule_that_is_switched_on_makes_runs(deployed):
    """With a SQLAlchemy that Prefect's scheduler cannot insert with, everything else works and this does not."""
    with deployed.client() as client:
        deployment = client.read_deployment_by_name(NAME)
        (schedule,) = deployment.schedules
        client.update_deployment_schedule(deployment.id, schedule.id, active=True)
        wanted = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            tags=FlowRunFilterTags(all_=["auto-scheduled"]),
        )
        try:
            wait_until(lambda: client.read_flow_runs(flow_run_filter=wanted), "scheduled run", 60)
            times = {run.expected_start_time.strftime("%H:%M") for run in client.read_flow_runs(flow_run_filter=wanted)}
        finally:
            client.update_deployment_schedule(deployment.id, schedule.id, active=False)
    assert times == {"01:00"}


@pytest.fixture
def worker(deployed: Server, tmp_path: Path) -> Iterator[None]:
    """A Prefect worker that runs deployments as processes."""
    log = (tmp_path / "worker.log").open("wb")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "ezigen", "--name", tmp_path.name]
    environment = {**deployed.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    yield
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:  # it waits for a run's process that it lost sight of
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    log.close()


def long_run(output: Path, model: Path) -> dict:
    """Parameters of a run of 40 items that is not over before somebody stops it."""
    return {
        "inputs": {"catalog_uri": str(write_catalog(output.parent / "shop", 40)), "output_uri": str(output)},
        "model": {
            "model": str(model),
            "adapter": str(model / "adapter"),
            "image_encoder": str(model / "dinov2"),
        },
        "sampler": {"num_steps": 60, "loops": {"stop": "fixed", "num_loops": 3}},
        "cluster": {"num_workers": 1, "num_slots": 1, "flush_interval_s": 0.5, "grace_period_s": 5},
    }


def test_a_cancelled_run_keeps_what_is_finished(tmp_path, deployed: Server, worker, tiny_model: Path):
    """What Prefect's pages do on "cancel": a state, then SIGTERM to the run's processes."""
    output = tmp_path / "out"
    parameters = long_run(output, tiny_model)
    with deployed.client() as client:
        deployment = client.read_deployment_by_name(NAME)
        run_id = client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

        def read_state() -> State:
            return client.read_flow_run(run_id).state

        wait_until(lambda: stored_rows(output) or read_state().is_final(), "first row")
        assert read_state().is_running(), read_state()
        client.set_flow_run_state(run_id, Cancelling())
        wait_until(lambda: not read_state().is_cancelling(), "end")
        state = read_state()
    assert state.is_cancelled()
    assert json.loads((output / "run.json").read_text())["state"] == "stopped"
    rows = stored_rows(output)
    assert 0 < len(rows) < 40
    assert all(row.status == "done" for row in rows)
    assert (
        state.message == f"stopped by SIGTERM: {len(rows)} done, 0 failed, {40 - len(rows)} left; run again to continue"
    )


@pytest.fixture
def driver(deployed: Server, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The same worker as a service (flows/driver.py)."""
    command = [sys.executable, "-m", "flows.driver", "--stop-timeout=60", "--pool=ezigen", f"--name={tmp_path.name}"]
    environment = {**deployed.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with (tmp_path / "driver.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(90)


def test_a_stopped_driver_keeps_what_its_runs_have_done(tmp_path, deployed: Server, driver, tiny_model: Path):
    """What Kubernetes does to the driver's pod. Prefect's worker alone leaves the run `Running` for ever."""
    output = tmp_path / "out"
    with deployed.client() as client:
        deployment = client.read_deployment_by_name(NAME)
        parameters = long_run(output, tiny_model)
        run_id = client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id
        wait_until(lambda: stored_rows(output), "first row")
        driver.terminate()
        assert driver.wait(120) == 0
        state = client.read_flow_run(run_id).state
    assert state.is_crashed(), state
    assert json.loads((output / "run.json").read_text())["state"] == "stopped"
    rows = stored_rows(output)
    assert 0 < len(rows) < 40
    assert all(row.status == "done" for row in rows)


SETTINGS = {
    "EZIGEN_CODE": str(ROOT),
    "EZIGEN_VERSION": "v1-test",
    "EZIGEN_RAY_ADDRESS": "ezigen-head-svc:6379",
    "EZIGEN_ROOT_URI": "s3://shop",
    "EZIGEN_ACCELERATOR": "gpu",
}
FLOWS = {
    "nightly": personalize_catalog,
    "build-pairs": build_pairs,
    "precompute-features": precompute_features,
    "train-adapter": train_adapter,
    "evaluate-adapter": evaluate_adapter,
    "run-pipeline": run_pipeline,
}


@pytest.fixture(scope="module")
def shared(deployed: Server) -> Server:
    """The server after `infra/prefect.yaml` has replaced the deployments, from the environment of a driver: keep the
    tests that use it last.
    """
    driver = replace(deployed, environment={**deployed.environment, **SETTINGS})
    driver.prefect("--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml")
    return driver


@pytest.mark.parametrize("name", FLOWS)
def test_the_server_has_the_file_of_a_shared_cluster_with_the_settings_put_in(shared, name):
    deployments = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())["deployments"]
    assert {deployment["name"] for deployment in deployments} == set(FLOWS)
    (written,) = (with_settings(deployment) for deployment in deployments if deployment["name"] == name)
    with shared.client() as client:
        stored = client.read_deployment_by_name(NAMES[name])
    assert "{{" not in str(stored.parameters)
    assert stored.parameters == written["parameters"]
    assert stored.pull_steps == written["pull"]
    assert stored.entrypoint == written["entrypoint"]
    assert stored.version == "v1-test"
    assert stored.work_pool_name == written["work_pool"]["name"]
    assert stored.job_variables == written["work_pool"]["job_variables"]
    assert [schedule.active for schedule in stored.schedules] == [False] * len(written["schedules"])
    given = FLOWS[name].validate_parameters(stored.parameters)
    assert given["cluster"].address == SETTINGS["EZIGEN_RAY_ADDRESS"]
    assert given["cluster"].num_workers > 0


def with_settings(value):
    """A part of the file with the environment's values put in."""
    match value:
        case dict():
            return {key: with_settings(part) for key, part in value.items()}
        case list():
            return [with_settings(part) for part in value]
        case str():
            for name, setting in SETTINGS.items():
                value = value.replace(f"{{{{ ${name} }}}}", setting)
    return value


def stored_rows(output: Path) -> list[ResultRow]:
    return list(RunOutput(str(output)).read_result_rows())


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.2)
