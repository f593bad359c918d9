"""Rules, dashboard and their documentation: valid, tested, explained, and the same everywhere."""

import importlib.util
import json
import re
from types import ModuleType

import pytest
import yaml

from tasks.monitoring import METRICS
from tests.infra.built import INFRA, OVERLAYS, ROOT, build, one
from tests.infra.test_documentation import table
from tests.monitoring.prometheus import needs_prometheus, run_promtool

FOLDER = INFRA / "monitoring"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text("utf-8"))
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PAGE = (ROOT / "docs/observability.md").read_text("utf-8")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_prometheus
def test_the_rules_are_valid():
    run_promtool("check", "rules", FOLDER / "rules.yaml")


@needs_prometheus
def test_every_alarm_fires_when_it_should():
    run_promtool("test", "rules", FOLDER / "rules_test.yaml")


def test_every_alarm_has_a_test_in_which_it_fires():
    tests = yaml.safe_load((FOLDER / "rules_test.yaml").read_text("utf-8"))["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    assert fired == ALERTS.keys()


@needs_prometheus
def test_the_configuration_is_valid(tmp_path):
    for name in ("prometheus.yml", "rules.yaml"):
        (tmp_path / name).write_text((FOLDER / name).read_text("utf-8"))
    assert "SUCCESS" in run_promtool("check", "config", tmp_path / "prometheus.yml")


@pytest.mark.parametrize("name", ALERTS)
def test_an_alarm_says_what_it_is_and_what_to_do(name):
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert f"\n## {anchor.capitalize()}\n" in (ROOT / page).read_text("utf-8")
    assert name in table("Alarms")


def test_no_alarm_is_explained_that_is_gone():
    assert {name for name in table("Alarms") if name.startswith("Ezigen")} == ALERTS.keys()


@pytest.mark.parametrize("folder", OVERLAYS)
def test_kubernetes_gets_the_same_rules_and_dashboard(folder):
    manifests = build(folder)
    assert one(manifests, "PrometheusRule")["spec"] == RULES
    shown = one(manifests, "ConfigMap", "ezigen-dashboard")
    assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(shown["data"]["dashboard.json"]) == DASHBOARD


def test_what_is_generated_is_up_to_date():
    """Otherwise: python infra/monitoring/generate.py."""
    made = generator()
    assert made.dashboard() == DASHBOARD
    assert made.prometheus_rule() == yaml.safe_load((FOLDER / "prometheus-rule.yaml").read_text("utf-8"))


def test_panels_neither_overlap_nor_leave_the_page():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_panel_asks_the_source_that_is_chosen():
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    for panel in PANELS:
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= names
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_rules_and_panels_ask_for_metrics_that_there_are():
    known = {f"ray_{metric.name}" for metric in METRICS}
    known |= {f"ray_ezigen_loops_{part}" for part in ("bucket", "sum", "count")}
    asked = [target["expr"] for panel in PANELS for target in panel["targets"]]
    asked += [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    names = {name for text in asked for name in re.findall(r"\bray_ezigen\w*", text)}
    assert names <= known
    # A metric that nobody looks at would be a cost without a use.
    assert {f"ray_{m.name}" for m in METRICS if m.kind != "histogram"} <= names


def test_every_metric_is_explained_as_it_is():
    rows = re.findall(r"^\| `(ray_ezigen\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    told = {name: (kind, tuple(re.findall(r"\w+", labels)), meaning) for name, kind, labels, meaning in rows}
    assert told == {f"ray_{m.name}": (m.kind, m.labels, m.meaning) for m in METRICS}


def test_metric_names_follow_the_rules_of_prometheus():
    for metric in METRICS:
        assert re.fullmatch(r"ezigen(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.meaning.endswith(".")
