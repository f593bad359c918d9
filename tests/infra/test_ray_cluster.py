"""Ray, its driver and Prefect's worker, as the manifests put them together."""

import re

import pytest

from ezigen.config import RayConfig
from flows.driver import END_TIMEOUT_S
from tests.infra.built import OVERLAYS, Manifest, argument, build, one, the_pod

STORING_S = 10
"""What a run needs after cluster.grace_period_s to store its rows (docs/operations.md)."""


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return build(request.param)


def token(container: Manifest) -> tuple[str, str]:
    """Secret and key of Ray's token."""
    (found,) = (v["valueFrom"]["secretKeyRef"] for v in container["env"] if v["name"] == "RAY_AUTH_TOKEN")
    return found["name"], found["key"]


def test_the_head_computes_nothing(manifests):
    parameters = one(manifests, "RayCluster")["spec"]["headGroupSpec"]["rayStartParams"]
    assert (parameters["num-cpus"], parameters["num-gpus"]) == ("0", "0")


def test_the_autoscaler_is_the_second_one_and_its_pods_stay_dead(manifests):
    """Version 2 tells nodes by their pods, so a pod that started again would be two nodes."""
    spec = one(manifests, "RayCluster")["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["restartPolicy"] == "Never"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] > 0


def test_workers_may_stand_on_spot_nodes_and_the_head_and_the_driver_may_not(manifests):
    spec = one(manifests, "RayCluster")["spec"]
    for group in spec["workerGroupSpecs"]:
        tolerated = {toleration["key"] for toleration in group["template"]["spec"]["tolerations"]}
        assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "spot"} <= tolerated
        assert ("nvidia.com/gpu" in tolerated) is (group["groupName"] == "gpu")
    for component in ("ray-head", "driver"):
        pod = the_pod(manifests, component).spec
        assert "tolerations" not in pod
        (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert {expression["operator"] for expression in term["matchExpressions"]} == {"NotIn"}
        assert pod["containers"][0]["name"] in {"ray-head", "worker"}


def test_one_token_for_all_of_ray(manifests):
    options = one(manifests, "RayCluster")["spec"]["authOptions"]
    assert options["mode"] == "token"
    driver = the_pod(manifests, "driver")
    submitter = the_pod(build("jobs"), "ray-job-submitter")
    expected = (options["secretName"], "auth_token")  # the key that KubeRay reads
    assert token(driver.container("ray-node")) == expected
    assert token(driver.container("worker")) == expected
    assert token(submitter.containers[0]) == expected


def test_the_driver_is_a_node_of_the_cluster_without_capacity(manifests):
    cluster = one(manifests, "RayCluster")["metadata"]["name"]
    driver = the_pod(manifests, "driver")
    node = driver.container("ray-node")
    assert [argument(node, name) for name in ("num-cpus", "num-gpus")] == ["0", "0"]
    address = argument(node, "address")
    assert address == f"{cluster}-head-svc:6379"
    assert one(manifests, "ConfigMap", "ezigen-settings")["data"]["EZIGEN_RAY_ADDRESS"] == address
    assert {"name": "gcs-server", "containerPort": 6379} in the_pod(manifests, "ray-head").containers[0]["ports"]
    # A node with this variable would be taken for one of the autoscaler's, which knows no such pod.
    assert "RAY_CLOUD_INSTANCE_ID" not in {variable["name"] for variable in node["env"]}


def test_the_driver_shares_with_its_node_what_ray_needs(manifests):
    driver = the_pod(manifests, "driver")
    assert driver.spec["shareProcessNamespace"] is True
    node, worker = driver.container("ray-node"), driver.container("worker")
    shared = {mount["mountPath"]: mount["name"] for mount in node["volumeMounts"]}
    assert {"/tmp", "/dev/shm"} <= shared.keys()
    assert shared.items() <= {m["mountPath"]: m["name"] for m in worker["volumeMounts"]}.items()
    assert node["image"] == worker["image"]


def test_the_node_starts_before_the_worker_and_ends_after_it(manifests):
    """An init container that is restarted for ever is a sidecar: started first, and stopped last."""
    (node,) = the_pod(manifests, "driver").spec["initContainers"]
    assert node["restartPolicy"] == "Always"
    assert "startupProbe" in node


def test_a_stopped_driver_has_time_to_store_what_its_runs_have_done(manifests):
    driver = the_pod(manifests, "driver")
    stop_timeout_s = float(argument(driver.container("worker"), "stop-timeout"))
    assert stop_timeout_s > RayConfig().grace_period_s + STORING_S
    assert driver.spec["terminationGracePeriodSeconds"] > stop_timeout_s + 2 * END_TIMEOUT_S
    # A RayJob's driver runs on the head.
    head = the_pod(manifests, "ray-head").spec
    assert head["terminationGracePeriodSeconds"] > RayConfig().grace_period_s + STORING_S


def test_ports_that_are_declared_are_those_that_are_listened_on(manifests):
    driver = the_pod(manifests, "driver")
    node = {port["name"]: port["containerPort"] for port in driver.container("ray-node")["ports"]}
    assert str(node["metrics"]) == argument(driver.container("ray-node"), "metrics-export-port")
    assert str(node["ray-agent"]) == argument(driver.container("ray-node"), "dashboard-agent-listen-port")
    (health,) = driver.container("worker")["ports"]
    variables = {v["name"]: v.get("value") for v in driver.container("worker")["env"]}
    assert variables["PREFECT_WORKER_WEBSERVER_PORT"] == str(health["containerPort"])
    assert health["containerPort"] not in node.values()
    spec = one(manifests, "RayCluster")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        ports = {p["name"]: p["containerPort"] for p in group["template"]["spec"]["containers"][0]["ports"]}
        assert group["rayStartParams"]["metrics-export-port"] == str(ports["metrics"])
    server = the_pod(manifests, "prefect-server").containers[0]
    assert argument(server, "port") == str(server["ports"][0]["containerPort"])


def test_driver_and_workers_are_the_same_to_the_bucket(manifests):
    """The driver's AWS variables go to the workers, and name a file that only this account's pods have."""
    spec = one(manifests, "RayCluster")["spec"]
    accounts = {group["template"]["spec"]["serviceAccountName"] for group in spec["workerGroupSpecs"]}
    assert accounts == {the_pod(manifests, "driver").spec["serviceAccountName"]}


def test_the_server_asks_for_a_password_and_the_worker_knows_it(manifests):
    def reference(component: str, container: str, name: str) -> Manifest:
        (found,) = (v for v in the_pod(manifests, component).container(container)["env"] if v["name"] == name)
        return found["valueFrom"]["secretKeyRef"]

    server = reference("prefect-server", "prefect-server", "PREFECT_SERVER_API_AUTH_STRING")
    assert server == reference("driver", "worker", "PREFECT_API_AUTH_STRING")
    assert not server.get("optional")
    database = reference("prefect-server", "prefect-server", "PREFECT_SERVER_DATABASE_PASSWORD")
    assert database == reference("postgres", "postgres", "POSTGRES_PASSWORD")


def test_the_job_runs_on_the_cluster_that_there_is():
    job = one(build("jobs"), "RayJob")["spec"]
    cluster = one(build("overlays/gpu"), "RayCluster")["metadata"]["name"]
    assert job["clusterSelector"] == {"ray.io/cluster": cluster}
    command = job["entrypoint"].split()
    assert command[:2] == ["ezigen", "personalize"]
    assert command[command.index("--address") + 1] == f"{cluster}-head-svc:6379"


def test_the_options_of_the_job_are_options():
    from typer.testing import CliRunner

    from flows.command_line import app

    shown = CliRunner().invoke(app, ["personalize", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert shown.exit_code == 0
    known = set(re.findall(r"--[a-z-]+", shown.stdout))
    used = {word for word in one(build("jobs"), "RayJob")["spec"]["entrypoint"].split() if word.startswith("--")}
    assert used
    assert used <= known
