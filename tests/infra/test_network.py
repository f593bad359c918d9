"""Who may talk to whom: the policies evaluated, for the connections that are needed and for those that must not be."""

import pytest

from tests.infra.built import OVERLAYS, Manifest, Pod, build, pods, the_pod

NEEDED = [
    ("prefect-server", "postgres", 5432),
    ("postgres-backup", "postgres", 5432),
    ("driver", "prefect-server", 4200),
    ("driver", "ray-head", 6379),
    ("driver", "ray-worker", 10002),
    ("ray-worker", "driver", 10002),
    ("ray-worker", "ray-head", 6379),
    ("ray-head", "ray-worker", 10002),
    ("ray-worker", "ray-worker", 10002),
    ("ray-job-submitter", "ray-head", 8265),
]
FORBIDDEN = [
    ("driver", "postgres", 5432),
    ("ray-worker", "postgres", 5432),
    ("ray-worker", "prefect-server", 4200),
    ("ray-head", "prefect-server", 4200),
    ("postgres", "prefect-server", 4200),
    ("prefect-server", "ray-head", 8265),
    ("ray-job-submitter", "ray-head", 6379),
    ("ray-job-submitter", "postgres", 5432),
    ("postgres-backup", "prefect-server", 4200),
]
COMPONENTS = {"postgres", "postgres-backup", "prefect-server", "driver", "ray-head", "ray-worker", "ray-job-submitter"}


def everything(folder: str) -> list[Manifest]:
    return [*build(folder), *build("jobs")]


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", "this test knows no other operator"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def policies(manifests: list[Manifest], labels: dict[str, str], direction: str) -> list[Manifest]:
    found = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    return [spec for spec in found if direction in spec["policyTypes"] and matches(spec["podSelector"], labels)]


def allows(rule: Manifest, side: str, peer: dict[str, str], port: int) -> bool:
    """Whether a rule lets a pod of the same namespace through."""
    peers = rule.get(side, [{"podSelector": {}}])
    is_peer = any(
        "podSelector" in p and "namespaceSelector" not in p and matches(p["podSelector"], peer) for p in peers
    )
    return is_peer and ("ports" not in rule or any(p["port"] == port for p in rule["ports"]))


def may_connect(manifests: list[Manifest], source: Pod, target: Pod, port: int) -> bool:
    """Both ends have to agree; a pod that no policy selects is open to all."""
    leaving = policies(manifests, dict(source.labels), "Egress")
    entering = policies(manifests, dict(target.labels), "Ingress")
    can_leave = not leaving or any(
        allows(rule, "to", dict(target.labels), port) for spec in leaving for rule in spec.get("egress", [])
    )
    can_enter = not entering or any(
        allows(rule, "from", dict(source.labels), port) for spec in entering for rule in spec.get("ingress", [])
    )
    return can_leave and can_enter


def pod_of(manifests: list[Manifest], component: str) -> Pod:
    return next(pod for pod in pods(manifests) if pod.component == component)


@pytest.mark.parametrize("folder", OVERLAYS)
@pytest.mark.parametrize(("source", "target", "port"), NEEDED)
def test_what_is_needed_is_allowed(folder, source, target, port):
    manifests = everything(folder)
    assert may_connect(manifests, pod_of(manifests, source), pod_of(manifests, target), port)


@pytest.mark.parametrize(("source", "target", "port"), FORBIDDEN)
def test_what_is_not_needed_is_refused(source, target, port):
    manifests = everything("overlays/gpu")
    assert not may_connect(manifests, pod_of(manifests, source), pod_of(manifests, target), port)


def test_without_a_rule_nothing_passes():
    """Of every pod there is, and in both directions: a new component starts with nothing."""
    manifests = everything("overlays/gpu")
    assert {pod.component for pod in pods(manifests)} == COMPONENTS
    (deny,) = (m["spec"] for m in manifests if m["metadata"]["name"] == "default-deny")
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_every_selector_selects_something():
    manifests = everything("overlays/gpu")
    labels = [dict(pod.labels) for pod in pods(manifests)]
    selectors = []
    for manifest in manifests:
        spec = manifest.get("spec", {})
        match manifest["kind"]:
            case "NetworkPolicy":
                selectors.append(spec["podSelector"])
                for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
                    peers = (*rule.get("from", []), *rule.get("to", []))
                    selectors += [peer["podSelector"] for peer in peers if "podSelector" in peer]
            case "Service":
                selectors.append({"matchLabels": spec["selector"]})
            case "Deployment" | "StatefulSet" | "PodMonitor":
                selectors.append(spec["selector"])
    assert len(selectors) > 15
    for selector in selectors:
        assert any(matches(selector, found) for found in labels), selector


def test_services_lead_to_ports_of_their_pods():
    manifests = build("overlays/gpu")
    for service in (m for m in manifests if m["kind"] == "Service"):
        pod = the_pod(manifests, service["spec"]["selector"]["app.kubernetes.io/component"])
        ports = {port["name"]: port["containerPort"] for c in pod.containers for port in c.get("ports", [])}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_the_addresses_that_hand_out_a_machines_own_role_cannot_be_reached():
    blocks = [
        peer["ipBlock"]
        for manifest in everything("overlays/gpu")
        if manifest["kind"] == "NetworkPolicy"
        for rule in manifest["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    assert len(blocks) == 2
    for block in blocks:
        assert "169.254.0.0/16" in block["except"]


def test_only_ray_and_its_driver_leave_the_cluster():
    manifests = everything("overlays/gpu")
    leaving = {
        pod.component
        for pod in pods(manifests)
        for spec in policies(manifests, dict(pod.labels), "Egress")
        for rule in spec.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    }
    assert leaving == {"driver", "ray-head", "ray-worker"}


def test_the_pods_with_metrics_are_those_that_are_asked_for_them():
    manifests = build("overlays/gpu")
    (monitor,) = (m["spec"] for m in manifests if m["kind"] == "PodMonitor")
    (endpoint,) = monitor["podMetricsEndpoints"]
    with_metrics, asked = set(), set()
    for pod in pods(manifests):
        if matches(monitor["selector"], dict(pod.labels)):
            asked.add(pod.component)
        if any(port["name"] == endpoint["port"] for c in pod.containers for port in c.get("ports", [])):
            with_metrics.add(pod.component)
    assert asked == with_metrics == {"ray-head", "ray-worker", "driver"}
