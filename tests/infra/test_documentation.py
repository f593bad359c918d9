"""docs/cluster.md explains every image, port and secret of the manifests, and names none that is gone."""

import re

import pytest

from tests.infra.built import EVERYTHING, INFRA, ROOT, Manifest, build, one, pods
from tests.infra.test_compose import services

PAGE = (ROOT / "docs/cluster.md").read_text("utf-8")


def table(section: str) -> dict[str, str]:
    """First cell -> the rest, of the table in that section."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows, section
    return {cells[0].strip("`"): cells[1] for cells in rows}


def all_manifests() -> list[Manifest]:
    return [manifest for folder in EVERYTHING for manifest in build(folder)]


def secrets_used() -> dict[str, set[str]]:
    """Secret -> keys that a pod names; none where it takes all of them."""
    found: dict[str, set[str]] = {}
    for pod in pods(all_manifests()):
        for container in pod.containers:
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    found.setdefault(reference["name"], set()).add(reference["key"])
            for source in container.get("envFrom", []):
                if "secretRef" in source:
                    found.setdefault(source["secretRef"]["name"], set())
    options = one(build("overlays/gpu"), "RayCluster")["spec"]["authOptions"]
    found.setdefault(options["secretName"], set()).add("auth_token")
    return found


def test_every_image_is_explained_and_no_other():
    used = {container["image"] for pod in pods(all_manifests()) for container in pod.containers}
    used |= {service["image"] for service in services().values()}
    used |= set(re.findall(r"^FROM (\S+:\S+)", (INFRA / "images/Dockerfile").read_text("utf-8"), re.MULTILINE))
    assert table("Images").keys() == used


def test_every_port_is_explained():
    declared = {
        port["containerPort"] for pod in pods(all_manifests()) for c in pod.containers for port in c.get("ports", [])
    }
    for manifest in all_manifests():
        if manifest["kind"] == "Service":
            declared |= {port["port"] for port in manifest["spec"]["ports"]}
        if manifest["kind"] == "NetworkPolicy":
            rules = (*manifest["spec"].get("ingress", []), *manifest["spec"].get("egress", []))
            declared |= {port["port"] for rule in rules for port in rule.get("ports", [])}
    for service in services().values():
        declared |= {int(port.split(":")[1]) for port in service.get("ports", [])}
    assert len(declared) > 8
    told = {int(number) for first in table("Ports") for number in re.findall(r"\d+", first)}
    assert declared - told == set()
    assert told - declared == {10002, 19999}  # the range that Ray chooses from


def test_every_secret_and_its_keys_are_explained_and_no_other():
    rows = table("Secrets")
    assert rows.keys() == secrets_used().keys()
    for name, keys in secrets_used().items():
        for key in keys:
            assert f"`{key}`" in rows[name], (name, key)


def test_every_secret_can_be_rotated():
    rotated = " ".join(table("Rotate keys"))
    for name in secrets_used():
        assert name in rotated


def test_what_has_to_be_there_before_is_created():
    optional = {"ezigen-s3", "ezigen-hub"}
    created = dict(re.findall(r"create secret generic (\S+)\s+--from-literal=([\w-]+)=", PAGE))
    assert {(name, key) for name, keys in secrets_used().items() if name not in optional for key in keys} == set(
        created.items()
    )


def test_every_pod_has_a_row():
    text = PAGE.partition("\n| pod |")[2].partition("\n## ")[0]
    for pod in pods(build("overlays/gpu")):
        assert f"`{pod.component}`" in text, pod.component


MADE_BY_HAND = {"infra/compose/.env", "infra/compose/data"}


@pytest.mark.parametrize("path", sorted({*re.findall(r"infra/[\w./-]*\w", PAGE)} - MADE_BY_HAND))
def test_files_that_are_named_exist(path):
    assert (ROOT / path).exists()
