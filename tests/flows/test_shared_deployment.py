"""infra/prefect.yaml against what a server has after deploying it from the driver's environment."""

from dataclasses import replace

import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate

from flows.build_pairs import build_pairs
from flows.evaluate_adapter import evaluate_adapter
from flows.personalize_catalog import personalize_catalog
from flows.precompute_features import precompute_features
from flows.run_pipeline import run_pipeline
from flows.train_adapter import train_adapter
from tests.flows.conftest import ROOT, Server

FLOWS = {
    "nightly": personalize_catalog,
    "build-pairs": build_pairs,
    "precompute-features": precompute_features,
    "train-adapter": train_adapter,
    "evaluate-adapter": evaluate_adapter,
    "run-pipeline": run_pipeline,
}
SETTINGS = {
    "EZIGEN_RAY_ADDRESS": "ezigen-head-svc:6379",
    "EZIGEN_ROOT_URI": "s3://shop",
    "EZIGEN_ACCELERATOR": "gpu",
}


@pytest.fixture(scope="module")
def deployed(prefect_server: Server) -> Server:
    with prefect_server.client() as client:
        client.create_work_pool(WorkPoolCreate(name="ezigen", type="process"), overwrite=True)
    driver = replace(prefect_server, environment={**prefect_server.environment, **SETTINGS})
    driver.prefect("--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml")
    return driver


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


@pytest.mark.parametrize("name", FLOWS)
def test_the_server_has_the_file_with_the_settings_put_in(deployed, name):
    deployments = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())["deployments"]
    assert {deployment["name"] for deployment in deployments} == set(FLOWS)
    (written,) = (with_settings(deployment) for deployment in deployments if deployment["name"] == name)
    with deployed.client() as client:
        stored = client.read_deployment_by_name(f"{FLOWS[name].name}/{name}")
    assert "{{" not in str(stored.parameters)
    assert stored.parameters == written["parameters"]
    assert stored.pull_steps == written["pull"]
    assert stored.entrypoint == written["entrypoint"]
    assert stored.work_pool_name == written["work_pool"]["name"]
    assert stored.job_variables == written["work_pool"]["job_variables"]
    assert [schedule.active for schedule in stored.schedules] == [False] * len(written["schedules"])
    given = FLOWS[name].validate_parameters(stored.parameters)
    assert given["cluster"].address == SETTINGS["EZIGEN_RAY_ADDRESS"]
    assert given["cluster"].num_workers > 0
