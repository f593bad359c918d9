"""Every object of the manifests against the schema of its kind, unknown fields refused."""

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.infra.built import EVERYTHING, INFRA, Manifest, build, one, pod_templates

OLDEST, NEWEST = "1.33", "1.37"
"""Kubernetes with sidecars as a settled feature, and the newest one whose schemas are installed."""
CUSTOM = yaml.safe_load((INFRA.parent / "tests/infra/custom_resources.yaml").read_text("utf-8"))


def check(manifest: Manifest, version: str = OLDEST) -> None:
    """Raises the ValidationError of whichever schema the object offends."""
    schema = CUSTOM["kinds"].get(f"{manifest['apiVersion']} {manifest['kind']}")
    if schema is None:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    jsonschema.validate(manifest["spec"], {**schema, "$defs": CUSTOM["$defs"]})
    for name, template in pod_templates([manifest]):
        pod_template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        try:
            kubernetes_validate.validate(pod_template, version, strict=True)
        except jsonschema.ValidationError as error:
            error.add_note(f"in the pod {name}")
            raise


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("folder", EVERYTHING)
def test_every_object_fits_its_kind(folder, version):
    manifests = build(folder)
    assert manifests
    for manifest in manifests:
        check(manifest, version)


@pytest.mark.parametrize("folder", EVERYTHING)
def test_every_object_is_in_the_namespace(folder):
    for manifest in build(folder):
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "ezigen"


def test_the_schemas_of_kuberay_are_schemas():
    for schema in CUSTOM["kinds"].values():
        jsonschema.Draft202012Validator.check_schema({**schema, "$defs": CUSTOM["$defs"]})


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replica"), 1),
        ("NetworkPolicy", ("spec", "podSelectors"), {}),
        ("RayCluster", ("spec", "autoscaler"), {}),
        ("RayCluster", ("spec", "autoscalerOptions", "version"), "v3"),
        ("RayCluster", ("spec", "authOptions", "mode"), "password"),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "serviceAccount_name"), "x"),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers"), "none"),
        ("RayJob", ("spec", "backoffLimit"), 2),
        ("RayJob", ("spec", "clusterSelector"), {"name": "ezigen"}),
        ("PodMonitor", ("spec", "podMetricsEndpoints"), [{"port": 8080}]),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "alert"), "both an alert and a record"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "expression"), "up"),
    ],
)
def test_a_wrong_field_is_refused(kind, path, value):
    manifests = build("jobs" if kind == "RayJob" else "overlays/gpu")
    manifest = next(m for m in manifests if m["kind"] == kind)
    check(manifest)
    part = manifest
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(manifest)


def test_the_trial_has_no_gpus_and_production_has():
    groups = {
        folder: [group["groupName"] for group in one(build(folder), "RayCluster")["spec"]["workerGroupSpecs"]]
        for folder in EVERYTHING[:2]
    }
    assert groups == {"overlays/cpu-trial": ["cpu"], "overlays/gpu": ["cpu", "gpu"]}
