"""infra/prefect.yaml beside prefect.yaml and the manifests that it is deployed on."""

import re
from typing import Any

import pytest
import yaml

from tests.infra.built import INFRA, OVERLAYS, ROOT, argument, build, constraints, one, project_version, the_pod
from tests.infra.test_compose import services

SAME = ("entrypoint", "tags", "enforce_parameter_schema", "concurrency_limit", "schedules", "work_pool")
"""What a shared cluster changes nothing about."""


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def deployments(name: str) -> dict[str, dict[str, Any]]:
    return {deployment["name"]: deployment for deployment in read(name)["deployments"]}


def variables() -> set[str]:
    """What the file takes from a driver's environment, beside what every image has."""
    return set(re.findall(r"{{ \$(\w+) }}", (INFRA / "prefect.yaml").read_text("utf-8"))) - {
        "EZIGEN_CODE",
        "EZIGEN_VERSION",
    }


def test_both_files_have_the_same_deployments():
    here, there = deployments("prefect.yaml"), deployments("infra/prefect.yaml")
    assert here.keys() == there.keys()
    for name, deployment in there.items():
        assert {key: deployment[key] for key in SAME} == {key: here[name][key] for key in SAME}
        assert set(deployment) - set(here[name]) == {"pull"}


def test_versions_are_the_commits_and_prefect_s():
    for name, version in (("prefect.yaml", "{{ commit.stdout }}"), ("infra/prefect.yaml", "{{ $EZIGEN_VERSION }}")):
        assert read(name)["prefect-version"] == constraints()["prefect"]
        assert {d["version"] for d in deployments(name).values()} == {version}
    (step,) = read("prefect.yaml")["build"]
    assert f"|| echo {project_version()}" in step["prefect.deployments.steps.run_shell_script"]["script"]
    assert f"ARG VERSION={project_version()}\n" in (INFRA / "images/Dockerfile").read_text("utf-8")


def test_every_run_starts_where_the_image_has_the_code():
    dockerfile = (INFRA / "images/Dockerfile").read_text("utf-8")
    (workdir,) = set(re.findall(r"^WORKDIR (\S+)", dockerfile, re.MULTILINE))
    assert f" EZIGEN_CODE={workdir} " in dockerfile
    assert " EZIGEN_VERSION=${VERSION} " in dockerfile
    for deployment in deployments("infra/prefect.yaml").values():
        ((step, arguments),) = deployment["pull"][0].items()
        assert (step, arguments) == (
            "prefect.deployments.steps.set_working_directory",
            {"directory": "{{ $EZIGEN_CODE }}"},
        )


def test_every_run_works_on_the_shared_cluster():
    for deployment in deployments("infra/prefect.yaml").values():
        cluster = deployment["parameters"]["cluster"]
        assert cluster["address"] == "{{ $EZIGEN_RAY_ADDRESS }}"
        assert cluster["num_workers"] > 0


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_driver_on_kubernetes_knows_the_variables_and_the_pool(folder):
    manifests = build(folder)
    assert variables() <= one(manifests, "ConfigMap", "ezigen-settings")["data"].keys()
    worker = the_pod(manifests, "driver").container("worker")
    assert {"configMapRef": {"name": "ezigen-settings"}} in worker["envFrom"]
    pools = {d["work_pool"]["name"] for d in deployments("infra/prefect.yaml").values()}
    assert pools == {argument(worker, "pool")}
    assert argument(worker, "type") == "process"


def test_the_worker_of_compose_knows_the_variables_and_the_pool():
    worker = services()["worker"]
    assert variables() <= worker["environment"].keys()
    assert argument(worker, "pool") == "ezigen"


def test_workers_that_a_run_asks_for_find_place():
    """Otherwise a run waits for nodes that the autoscaler never makes."""
    for folder in OVERLAYS:
        for group in one(build(folder), "RayCluster")["spec"]["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            per_node = int(limits.get("nvidia.com/gpu", limits["cpu"]))
            for deployment in deployments("infra/prefect.yaml").values():
                asked = deployment["parameters"]["cluster"]["num_workers"]
                assert group["maxReplicas"] * per_node >= asked, (folder, group["groupName"])
