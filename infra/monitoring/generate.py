"""Writes dashboard.json and prometheus-rule.yaml beside this file: `python infra/monitoring/generate.py`."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
NODE = 'SessionName=~"$session"'
RUN = 'flow=~"$flow", run=~"$run"'
WIDTH = 24

Json = dict[str, Any]
Panel = tuple[str, str, Json]
"""Type, title, and the rest of a panel."""


def target(expr: str, legend: str = "") -> Json:
    """One line of a panel, or several by their labels."""
    return {"expr": expr, "legendFormat": legend or "__auto"}


def series(
    title: str, unit: str, *targets: Json, stack: bool = False, note: str = "", top: float | None = None
) -> Panel:
    """A chart over time."""
    custom = {
        "lineWidth": 1,
        "fillOpacity": 30 if stack else 0,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
    }
    defaults = {"unit": unit, "min": 0, "custom": custom} | ({} if top is None else {"max": top})
    options = {
        "legend": {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return "timeseries", title, _panel(defaults, options, targets, note)


def stat(
    title: str, unit: str, expr: str, *, note: str = "", bad: float | None = None, decimals: int | None = None
) -> Panel:
    """The latest value of each run; red from `bad` on."""
    steps: list[Json] = [{"color": "text", "value": None}]
    if bad is not None:
        steps.append({"color": "red", "value": bad})
    defaults: Json = {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
    }
    return "stat", title, _panel(defaults, options, (target(expr, "{{run}}"),), note)


def table(title: str, expr: str, hidden: tuple[str, ...] = (), note: str = "") -> Panel:
    """The latest values, one row each."""
    panel = _panel({}, {"showHeader": True}, (target(expr) | {"format": "table", "instant": True},), note)
    panel["transformations"] = [
        {"id": "organize", "options": {"excludeByName": dict.fromkeys(("Time", *hidden), True)}}
    ]
    return "table", title, panel


def bars(title: str, expr: str, legend: str, note: str = "") -> Panel:
    """The latest values as bars."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "horizontal",
        "displayMode": "basic",
        "showUnfilled": False,
    }
    panel = _panel({"unit": "short", "min": 0}, options, (target(expr, legend) | {"instant": True},), note)
    return "bargauge", title, panel


def _panel(defaults: Json, options: Json, targets: tuple[Json, ...], note: str) -> Json:
    return {
        "description": note,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [one | {"refId": "ABCDEFGH"[place]} for place, one in enumerate(targets)],
    }


def rate(metric: str, labels: str, by: str = "") -> str:
    """Per second, summed."""
    return f"sum by ({by or 'flow, run'}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """A quotient, and nothing instead of 0 / 0."""
    return f"{part} / ({whole} > 0)"


def work(state: str) -> str:
    """A run's numbers of one state, of the units that it is about."""
    return f'sum by (flow, run) (ray_ezigen_run_work{{{RUN}, state="{state}", unit!="shards"}})'


ENDED = f'sum by (flow, run) (ray_ezigen_run_work{{{RUN}, state=~"done|failed"}})'
ENDED_RATE = f'sum by (flow, run) (deriv(ray_ezigen_run_work{{{RUN}, state=~"done|failed"}}[5m]))'
ITEMS = "ray_ezigen_items_total"
DONE_RATE = rate(ITEMS, f'{RUN}, status="done"')
SECONDS = "ray_ezigen_worker_seconds_total"
READY = f'sum by (flow, run) (ray_ezigen_workers{{{RUN}, state="ready"}})'

ROWS: tuple[tuple[str, tuple[tuple[int, int, Panel], ...]], ...] = (
    # Row, then width, height and panel.
    (
        "Runs",
        (
            (4, 4, stat("Active", "short", f"max by (flow, run) (ray_ezigen_run_active{{{RUN}}})")),
            (4, 4, stat("Over", "percentunit", share(ENDED, work("expected")), note="Of what the run has to do.")),
            (4, 4, stat("Time left", "s", f"({work('expected')} - {ENDED}) / ({ENDED_RATE} > 0)",
                        note="At the rate of the last 5 minutes.")),
            (4, 4, stat("Failed", "percentunit", share(work("failed"), ENDED), bad=0.2,
                        note="Of what has ended. Pairs: candidates that were refused.")),
            (4, 4, stat("Workers ready", "short", READY)),
            (4, 4, stat("Cost of an image", "short", f"$price / 3600 * {READY} / ({DONE_RATE} > 0)", decimals=6,
                        note="At `price` for a worker, as a rule a GPU, for an hour. `ezigen status --price` has it "
                             "for a whole run.")),
            (24, 5, table("Which run", f"max by (flow, run, run_id, model, device) (ray_ezigen_run_info{{{RUN}}})",
                          note="1: active, 0: has ended just now.")),
        ),
    ),
    (
        "Throughput",
        (
            (12, 8, series("Items that end", "cps", target(rate(ITEMS, RUN, "run, status"), "{{run}} {{status}}"),
                           stack=True)),
            (12, 8, series("How far", "short", target(f"sum by (run, state, unit) (ray_ezigen_run_work{{{RUN}}})",
                                                      "{{run}} {{unit}} {{state}}"))),
        ),
    ),
    (
        "Failures and loops",
        (
            (12, 8, series("Failures by code", "cps",
                           target(rate(ITEMS, f'{RUN}, status!="done"', "run, error_code"), "{{run}} {{error_code}}"),
                           stack=True)),
            (6, 8, bars("Failures so far", f'sum by (error_code) ({ITEMS}{{{RUN}, status!="done"}}) > 0',
                        "{{error_code}}", note="Of all runs since Ray's node began.")),
            (6, 8, series("Loops of an image", "short", target(
                share(rate("ray_ezigen_loops_sum", RUN), rate("ray_ezigen_loops_count", RUN)), "{{run}}"))),
            (24, 7, bars("Images by loops", f"sum by (le) (ray_ezigen_loops_bucket{{{RUN}}})", "up to {{le}}",
                         note="Cumulated: images that needed so many loops or fewer.")),
        ),
    ),
    (
        "Where the time goes",
        (
            (12, 9, series("Seconds of workers by part", "short", target(rate(SECONDS, RUN, "part"), "{{part}}"),
                           stack=True, note="Workers busy with it on average. `read` and `store` pass beside the "
                                            "networks; `idle` and `waiting` are a GPU without work.")),
            (12, 9, series("UNet evaluations", "cps",
                           target(rate("ray_ezigen_unet_calls_total", RUN, "phase"), "{{phase}}"), stack=True)),
            (6, 8, series("Slots that are filled", "percentunit", target(
                share(rate("ray_ezigen_filled_slot_steps_total", RUN, "lane"),
                      rate("ray_ezigen_slot_steps_total", RUN, "lane")), "{{lane}}"), top=1)),
            (6, 8, series("Cache hits", "percentunit", target(
                f"{rate('ray_ezigen_cache_hits_total', RUN, 'cache')} / ("
                f"{rate('ray_ezigen_cache_hits_total', RUN, 'cache')}"
                f" + {rate('ray_ezigen_cache_misses_total', RUN, 'cache')} > 0)", "{{cache}}"), top=1)),
            (6, 8, series("Floating-point operations of networks", "flops", target(
                rate("ray_ezigen_flop_total", RUN, "part"), "{{part}}"), stack=True)),
            (6, 8, series("Seconds to load a model", "s", target(
                share(f'sum by (flow, run) (increase({SECONDS}{{{RUN}, part="load"}}[1h]))',
                      f"sum by (flow, run) (increase(ray_ezigen_worker_starts_total{{{RUN}}}[1h]))"), "{{run}}"),
                note="Of the workers that started within an hour.")),
        ),
    ),
    (
        "Workers and queue",
        (
            (8, 8, series("Workers", "short", target(f"sum by (run, state) (ray_ezigen_workers{{{RUN}}})",
                                                     "{{run}} {{state}}"))),
            (8, 8, series("Queue", "short", target(
                f'sum by (run, unit, state) (ray_ezigen_run_work{{{RUN}, state=~"in_flight|waiting"}})',
                "{{run}} {{unit}} {{state}}"),
                note="Waiting: read from the catalog and kept in the driver, 1,024 at most.")),
            (8, 8, series("Workers lost, items requeued", "short",
                          target(f"sum by (run, reason) (increase(ray_ezigen_worker_losses_total{{{RUN}}}[5m]))",
                                 "{{run}} {{reason}}"),
                          target(f"sum by (run) (increase(ray_ezigen_items_requeued_total{{{RUN}}}[5m]))",
                                 "{{run}} requeued"), note="Within 5 minutes.")),
        ),
    ),
    (
        "Nodes",
        (
            (8, 8, series("CPU", "percent", target(f"ray_node_cpu_utilization{{{NODE}}}", "{{instance}}"), top=100)),
            (8, 8, series("Memory", "percentunit", target(
                f"ray_node_mem_used{{{NODE}}} / ray_node_mem_total{{{NODE}}}", "{{instance}}"), top=1)),
            (8, 8, series("Disk", "percent", target(f"ray_node_disk_utilization_percentage{{{NODE}}}", "{{instance}}"),
                          top=100)),
            (8, 8, series("GPU", "percent", target(f"ray_node_gpus_utilization{{{NODE}}}",
                                                   "{{instance}} {{GpuIndex}}"), top=100)),
            (8, 8, series("GPU memory", "percentunit", target(
                f"ray_node_gram_used{{{NODE}}} / (ray_node_gram_used{{{NODE}}} + ray_node_gram_available{{{NODE}}})",
                "{{instance}} {{GpuIndex}}"), top=1)),
            (8, 8, series("Network", "Bps",
                          target(f"ray_node_network_receive_speed{{{NODE}}}", "{{instance}} received"),
                          target(f"ray_node_network_send_speed{{{NODE}}}", "{{instance}} sent"))),
        ),
    ),
    (
        "Storage",
        (
            (8, 8, series("Read and written", "Bps", target(
                rate("ray_ezigen_storage_bytes_total", RUN, "direction"), "{{direction}}"))),
            (8, 8, series("Tried again", "cps", target(rate("ray_ezigen_storage_retries_total", RUN), "{{run}}"))),
            (8, 8, series("Shards stored", "short", target(
                f"sum by (flow, run) (increase(ray_ezigen_shards_written_total{{{RUN}}}[5m]))", "{{run}}"),
                note="Within 5 minutes.")),
        ),
    ),
    (
        "Training",
        (
            (8, 8, series("Loss", "short", target(f"ray_ezigen_train_loss{{{RUN}}}", "{{run}}"),
                          note="Mean of 100 steps.")),
            (8, 8, series("Samples", "cps", target(rate("ray_ezigen_train_samples_total", RUN), "{{run}}"))),
            (8, 8, series("Seconds of a step", "s", target(
                f'sum by (run, part) (rate({SECONDS}{{{RUN}, part=~"step|data"}}[$__rate_interval]))'
                " / on (run) group_left () "
                f"(sum by (run) (rate(ray_ezigen_train_steps_total{{{RUN}}}[$__rate_interval])) > 0)",
                "{{run}} {{part}}"), stack=True, note="data: the first worker waited for samples.")),
            (8, 8, series("Gradient norm", "short", target(f"ray_ezigen_train_grad_norm{{{RUN}}}", "{{run}}"))),
            (8, 8, series("Learning rate", "sci", target(f"ray_ezigen_train_learning_rate{{{RUN}}}", "{{run}}"))),
            (8, 8, series("Newest checkpoint", "short", target(f"ray_ezigen_train_checkpoint_step{{{RUN}}}",
                                                               "{{run}}"))),
        ),
    ),
    (
        "Services",
        (
            (12, 6, series("Answers to Prometheus", "bool", target('up{job=~"ray|prefect"}', "{{job}} {{instance}}"))),
            (12, 6, table("Alerts that fire", 'ALERTS{alertstate="firing", alertname=~"Ezigen.*"}',
                          ("__name__", "alertstate"))),
        ),
    ),
)  # fmt: skip


def dashboard() -> Json:
    """The dashboard, as Grafana imports it."""
    return {
        "uid": "ezigen",
        "title": "EZIGen Pipeline",
        "description": "Runs of the pipeline, from Ray's metrics. docs/observability.md explains each.",
        "tags": ["ezigen", "ray"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": list(variables())},
        "panels": list(panels()),
    }


def variables() -> Iterator[Json]:
    """What the reader chooses from."""
    yield {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "refresh": 1}
    for name, label, query in (
        ("flow", "Flow", "label_values(ray_ezigen_run_active, flow)"),
        ("run", "Run", 'label_values(ray_ezigen_run_active{flow=~"$flow"}, run)'),
        ("session", "Ray session", "label_values(ray_node_cpu_count, SessionName)"),
    ):
        yield {
            "type": "query",
            "name": name,
            "label": label,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }
    price = {"text": "2.5", "value": "2.5"}
    yield {
        "type": "textbox",
        "name": "price",
        "label": "Price of a worker for an hour",
        "query": "2.5",
        "current": price,
        "options": [price | {"selected": True}],
    }


def panels() -> Iterator[Json]:
    """The rows, and below each its panels from left to right."""
    ids, top = count(1), 0
    source = {"type": "prometheus", "uid": "${datasource}"}
    for title, row in ROWS:
        place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
        yield {"id": next(ids), "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        left, top, height = 0, top + 1, 0
        for width, panel_height, (kind, name, rest) in row:
            if left + width > WIDTH:
                left, top, height = 0, top + height, 0
            place = {"h": panel_height, "w": width, "x": left, "y": top}
            left, height = left + width, max(height, panel_height)
            targets = [one | {"datasource": source} for one in rest["targets"]]
            yield rest | {
                "id": next(ids), "type": kind, "title": name, "gridPos": place, "datasource": source, "targets": targets
            }  # fmt: skip
        top += height


def prometheus_rule() -> Json:
    """rules.yaml as an object of the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "ezigen"},
        "spec": yaml.safe_load((FOLDER / "rules.yaml").read_text("utf-8")),
    }


def main() -> None:
    """Writes both files."""
    (FOLDER / "dashboard.json").write_text(json.dumps(dashboard(), indent=1) + "\n", "utf-8")
    text = yaml.safe_dump(prometheus_rule(), sort_keys=False, width=10_000, explicit_start=True)
    note = "# Made from rules.yaml by generate.py.\n# yamllint disable rule:line-length rule:indentation\n"
    (FOLDER / "prometheus-rule.yaml").write_text(text.replace("---\n", f"---\n{note}", 1), "utf-8")


if __name__ == "__main__":
    main()
