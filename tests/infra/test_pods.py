"""What holds for every pod, whoever makes it: no rights, no secrets in clear, bounded resources, exact versions."""

import re
from collections.abc import Callable, Iterator

import pytest

from tests.infra.built import (
    EVERYTHING,
    Manifest,
    Pod,
    build,
    constraints,
    is_exact_image,
    one,
    pods,
    project_version,
    the_pod,
)

SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY|CREDENTIAL")
USED_FOR_KUBERNETES = {"ray-head"}
"""Components that speak to the Kubernetes API."""


def rights(manifests: list[Manifest]) -> Iterator[str]:
    """The restricted pod security standard, a root file system that nobody writes to, and no unneeded tokens."""
    accounts = {m["metadata"]["name"]: m for m in manifests if m["kind"] == "ServiceAccount"}
    for pod in pods(manifests):
        spec, context = pod.spec, pod.spec.get("securityContext", {})
        if not context.get("runAsNonRoot") or not context.get("runAsUser"):
            yield f"{pod.name} may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.name} has no seccomp profile"
        if spec.keys() & {"hostNetwork", "hostPID", "hostIPC"} or any("hostPath" in v for v in spec.get("volumes", [])):
            yield f"{pod.name} reaches its machine"
        if spec.get("automountServiceAccountToken") is not (pod.component in USED_FOR_KUBERNETES):
            yield f"{pod.name}: token of the Kubernetes API"
        if spec.get("serviceAccountName") not in accounts and one_part_of_several(manifests):
            yield f"{pod.name}: no such service account"
        for container in pod.containers:
            yield from container_rights(f"{pod.name}/{container['name']}", container.get("securityContext", {}))
    for cluster in (m for m in manifests if m["kind"] == "RayCluster"):
        options = cluster["spec"]["autoscalerOptions"]
        yield from container_rights("autoscaler", options.get("securityContext", {}))


def one_part_of_several(manifests: list[Manifest]) -> bool:
    """A kustomization of jobs alone relies on what another one has made."""
    return any(m["kind"] == "Namespace" for m in manifests)


def container_rights(name: str, context: Manifest) -> Iterator[str]:
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield f"{name} may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{name} keeps capabilities"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{name} may write to its image"


def resources(manifests: list[Manifest]) -> Iterator[str]:
    """Requests and limits of cores and memory; GPUs, which cannot be shared, in both."""
    named = [(f"{pod.name}/{c['name']}", c.get("resources", {})) for pod in pods(manifests) for c in pod.containers]
    clusters = [m["spec"] for m in manifests if m["kind"] == "RayCluster"]
    named += [("autoscaler", spec["autoscalerOptions"].get("resources", {})) for spec in clusters]
    for name, given in named:
        for group in ("requests", "limits"):
            if not {"cpu", "memory"} <= given.get(group, {}).keys():
                yield f"{name} has no {group}"
        gpus = [given.get(group, {}).get("nvidia.com/gpu") for group in ("requests", "limits")]
        if gpus[0] != gpus[1]:
            yield f"{name}: GPUs requested and allowed differ"


def images(manifests: list[Manifest]) -> Iterator[str]:
    """Exact images; ours has the version of the project."""
    for pod in pods(manifests):
        for container in pod.containers:
            image = container["image"]
            if not is_exact_image(image):
                yield f"{pod.name}/{container['name']}: {image} is not exact"
            if "/ezigen:" in image and f"/ezigen:{project_version()}-" not in image:
                yield f"{pod.name}/{container['name']}: {image} is not the project's version"


def secrets(manifests: list[Manifest]) -> Iterator[str]:
    """Secrets by reference alone: no values in the environment, in settings or in objects of their own."""
    for manifest in manifests:
        if manifest["kind"] == "Secret":
            yield f"secret {manifest['metadata']['name']} stands in a manifest"
        if manifest["kind"] == "ConfigMap":
            yield from (f"setting {name}" for name in manifest.get("data", {}) if SECRET_NAME.search(name))
    for pod in pods(manifests):
        for container in pod.containers:
            for variable in container.get("env", []):
                is_reference = "secretKeyRef" in variable.get("valueFrom", {})
                if SECRET_NAME.search(variable["name"]) and not is_reference:
                    yield f"{pod.name}/{container['name']}: {variable['name']} in clear"


def names(manifests: list[Manifest]) -> Iterator[str]:
    """What is named exists: volumes, settings, ports of probes and services. No variables that Kubernetes makes up."""
    settings = {m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap"}
    for pod in pods(manifests):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        volumes |= claims(manifests, pod)
        for container in pod.containers:
            name = f"{pod.name}/{container['name']}"
            ports = {port["name"] for port in container.get("ports", [])}
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{name}: no volume {mount['name']}"
            for source in container.get("envFrom", []):
                if "configMapRef" in source and source["configMapRef"]["name"] not in settings:
                    yield f"{name}: no settings {source['configMapRef']['name']}"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port", next(iter(ports), None))
                if port not in ports and port is not None:
                    yield f"{name}: {probe} asks port {port}"
            # Prefect takes PREFECT_SERVER_PORT, which Kubernetes makes of the service's name, for its own.
            if "ezigen" in container["image"] and pod.spec.get("enableServiceLinks") is not False:
                yield f"{name} gets variables of every service"


def claims(manifests: list[Manifest], pod: Pod) -> set[str]:
    sets = [m for m in manifests if m["kind"] == "StatefulSet" and m["metadata"]["name"] == pod.name]
    return {claim["metadata"]["name"] for m in sets for claim in m["spec"].get("volumeClaimTemplates", [])}


RULES: tuple[Callable[[list[Manifest]], Iterator[str]], ...] = (rights, resources, images, secrets, names)


@pytest.mark.parametrize("folder", EVERYTHING)
@pytest.mark.parametrize("rule", RULES)
def test_every_pod_keeps_the_rule(rule, folder):
    assert list(rule(build(folder))) == []


def server(manifests: list[Manifest]) -> Manifest:
    """The container that the breakages below break."""
    return the_pod(manifests, "prefect-server").spec["containers"][0]


BREAKAGES = {
    "root": (rights, lambda m: the_pod(m, "driver").spec["securityContext"].pop("runAsNonRoot")),
    "user 0": (rights, lambda m: the_pod(m, "postgres").spec["securityContext"].update(runAsUser=0)),
    "capabilities": (rights, lambda m: server(m)["securityContext"].update(capabilities={"drop": ["NET_RAW"]})),
    "sidecar": (rights, lambda m: the_pod(m, "driver").container("ray-node").pop("securityContext")),
    "autoscaler": (rights, lambda m: one(m, "RayCluster")["spec"]["autoscalerOptions"].pop("securityContext")),
    "token": (rights, lambda m: the_pod(m, "driver").spec.pop("automountServiceAccountToken")),
    "host": (rights, lambda m: the_pod(m, "driver").spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    "account": (rights, lambda m: the_pod(m, "driver").spec.update(serviceAccountName="default")),
    "no limits": (resources, lambda m: server(m)["resources"].pop("limits")),
    "limits without memory": (resources, lambda m: server(m)["resources"]["limits"].pop("memory")),
    "gpu without limit": (resources, lambda m: server(m)["resources"]["requests"].update({"nvidia.com/gpu": "1"})),
    "latest": (images, lambda m: server(m).update(image="docker.io/library/postgres:latest")),
    "no tag": (images, lambda m: server(m).update(image="registry.example.com:5000/ezigen")),
    "other version": (images, lambda m: server(m).update(image="registry.example.com/ezigen:0.0.9-cpu")),
    "value in clear": (secrets, lambda m: server(m)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"})),
    "secret": (secrets, lambda m: m.append({"kind": "Secret", "metadata": {"name": "x"}, "data": {}})),
    "setting": (
        secrets,
        lambda m: one(m, "ConfigMap", "ezigen-settings")["data"].update(PREFECT_API_AUTH_STRING="a:b"),
    ),
    "volume": (names, lambda m: server(m)["volumeMounts"].append({"name": "cache", "mountPath": "/cache"})),
    "probe": (names, lambda m: server(m)["livenessProbe"]["httpGet"].update(port="https")),
    "service links": (names, lambda m: the_pod(m, "prefect-server").spec.pop("enableServiceLinks")),
    "settings": (names, lambda m: one(m, "ConfigMap", "ezigen-settings")["metadata"].update(name="other")),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_pod_breaks_the_rule(breakage):
    rule, break_it = BREAKAGES[breakage]
    manifests = build("overlays/gpu")
    break_it(manifests)
    assert list(rule(manifests))


def test_everything_of_a_kind_has_one_image():
    """One PostgreSQL, one CPU and one GPU image: what was upgraded was upgraded everywhere."""
    used: dict[str, set[str]] = {}
    for folder in EVERYTHING:
        for pod in pods(build(folder)):
            for container in pod.containers:
                name, _, tag = container["image"].rpartition(":")
                used.setdefault(f"{name} {tag.rpartition('-')[2]}", set()).add(container["image"])
    assert {name: len(found) for name, found in used.items()} == {
        "docker.io/library/postgres bookworm": 1,
        "registry.example.com/ezigen cpu": 1,
        "registry.example.com/ezigen gpu": 1,
    }


def test_versions_are_those_of_the_environment():
    for folder in EVERYTHING[:2]:
        assert one(build(folder), "RayCluster")["spec"]["rayVersion"] == constraints()["ray"]
