"""What the manifests say once kustomize has built them, and the tools of the environment that check files."""

import copy
import functools
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
OVERLAYS = ("overlays/cpu-trial", "overlays/gpu")
EVERYTHING = (*OVERLAYS, "jobs")

Manifest = dict[str, Any]


def run_tool(name: str, *arguments: str | Path) -> str:
    """What a tool of this environment prints. Its package is one of the test requirements."""
    path = shutil.which(name, path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", ""))))
    assert path is not None, f"{name} is not installed: make setup"
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def _built(folder: str) -> list[Manifest]:
    text = run_tool("kubectl", "kustomize", INFRA / "kubernetes" / folder)
    return [manifest for manifest in yaml.load_all(text, yaml.CSafeLoader) if manifest]


def build(folder: str) -> list[Manifest]:
    """The objects of a kustomization, fresh for whoever wants to change them."""
    return copy.deepcopy(_built(folder))


def one(manifests: Sequence[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The only object of that kind (and name)."""
    (found,) = (m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"]))
    return found


@dataclass(frozen=True)
class Pod:
    """A pod that some object makes; `spec` is a part of that object."""

    name: str
    labels: Mapping[str, str]
    spec: Manifest

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def container(self, name: str) -> Manifest:
        (found,) = (container for container in self.containers if container["name"] == name)
        return found


def pods(manifests: Sequence[Manifest]) -> list[Pod]:
    """Every pod that these objects make."""
    return [
        Pod(name, template.get("metadata", {}).get("labels", {}), template["spec"])
        for name, template in pod_templates(manifests)
    ]


def pod_templates(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name and template of every pod, KubeRay's too."""
    for manifest in manifests:
        spec, name = manifest.get("spec", {}), manifest["metadata"]["name"]
        match manifest["kind"]:
            case "Deployment" | "StatefulSet":
                yield name, spec["template"]
            case "CronJob":
                yield name, spec["jobTemplate"]["spec"]["template"]
            case "RayCluster":
                yield "ray-head", spec["headGroupSpec"]["template"]
                for group in spec["workerGroupSpecs"]:
                    yield f"ray-worker {group['groupName']}", group["template"]
            case "RayJob":
                yield "submitter", spec["submitterPodTemplate"]
            case kind:
                assert "template" not in spec, f"{kind} {name} makes pods that no rule sees"


def the_pod(manifests: Sequence[Manifest], component: str) -> Pod:
    """The only pod of a component."""
    (found,) = (pod for pod in pods(manifests) if pod.component == component)
    return found


def argument(container: Manifest, name: str) -> str:
    """The value of `--name=value` in a container's command line."""
    words = [*container.get("command", []), *container.get("args", [])]
    (found,) = (word.partition("=")[2] for word in words if word.startswith(f"--{name}="))
    return str(found)


@functools.cache
def constraints() -> dict[str, str]:
    """Package -> exact version, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@functools.cache
def project_version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def is_exact_image(image: str) -> bool:
    """A digest, or a tag that names a version. `latest`, `main` and no tag at all name whatever is newest."""
    digest = re.search(r"@sha256:[0-9a-f]{64}$", image)
    tag = re.search(r"/[^/:@]+:v?\d+\.\d+[\w.-]*$", image)
    return bool(digest or tag)
