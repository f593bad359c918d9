"""Runs on a real Ray, what they tell a real Prometheus, and every question that dashboard and rules ask of it."""

import functools
import json
import os
import re
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray

from ezigen.config import CatalogInputs, ClusterConfig, ErrorCode
from ezigen.engine import Ended
from tasks.monitoring import METRICS, RunMetrics
from tasks.monitoring import metrics as m
from tasks.sharding.metrics import ShardMetrics
from tasks.sharding.progress import ShardMeter
from tasks.sharding.report import ShardReport
from tasks.training.control import ControlState, Pulse
from tasks.training.metrics import TrainingMetrics
from tests.monitoring.prometheus import FOLDER, Prometheus, needs_prometheus, started_prometheus
from tests.monitoring.scraping import Scrape, scrape, total
from tests.run.catalogs import write_catalog
from tests.run.conftest import wait_until
from tests.run.driver import run
from tests.run.light import DoomedWorker, LightEngine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_address")]

EXPORT_S = 60.0
"""Ray's processes tell their numbers every 10 s; a busy machine needs longer."""
NUM_ITEMS = 16
VALUES = {"$flow": ".*", "$run": ".*", "$session": ".*", "$price": "2.5", "$__rate_interval": "2m"}
EMPTY_HERE = {
    "GPU": "no GPU",
    "GPU memory": "no GPU",
    "Alerts that fire": "nothing is wrong for long enough",
}


class CountingEngine(LightEngine):
    """Counts what the real engine counts."""

    def step(self) -> list[Ended]:
        ended = super().step()
        for name in ("unet_calls.transfer", "slot_steps.transfer", "filled.transfer", "hits.text", "misses.text"):
            self.counters.add(name, len(ended))
        self.counters.add("flop.transfer", 1e9 * len(ended))
        return ended


class CountingWorker(DoomedWorker):
    def load_engine(self) -> CountingEngine:
        return CountingEngine(None, 0.3)


def make_images(folder, num_items: int, **cells) -> None:
    """A run of one name, night after night: one of these tests alone, as others count on the same Ray."""
    catalog = write_catalog(folder, num_items, **cells)
    inputs = CatalogInputs(catalog_uri=str(catalog), output_uri=str(folder / "monitored-catalog"), max_failed_share=1)
    address = ray.get_runtime_context().gcs_address
    run(
        inputs,
        CountingWorker,
        cluster=ClusterConfig(address=address, num_workers=2, num_slots=2, num_ahead=2, shard_size=4),
    )


def make_shards(rows: int) -> None:
    """What a run over shards tells, without the shards."""
    meter = ShardMeter("pairs", 100, 10, None)
    metrics = ShardMetrics("build_pairs", "monitored-pairs", meter, run_id="1")
    report = ShardReport("r0-00000", rows=rows, refused={"too_small": 2}, seconds=3.0)
    with metrics.working("cpu"):
        metrics.worker_counted({"seconds.load": 1.0, "storage_bytes.read": 5.0})
        metrics.shard_made(report)
        meter.add(report)
        metrics.tick(2, 2, 1, 1)


def train(samples: int) -> None:
    """What a training run tells of two groups of workers, without the training."""
    plan = SimpleNamespace(
        run="monitored-adapter",
        num_steps=100,
        config=SimpleNamespace(batch_size=4),
        model=SimpleNamespace(model="mini"),
    )
    metrics = TrainingMetrics(plan, run_id="1")
    pulse = Pulse("training", samples // 4, 0, 0.5, 1.5, 1e-4, samples, training_s=20.0, waited_s=2.0, load_s=7.0)
    with metrics.working("cpu"):
        metrics.take(ControlState(attempt=1, num_workers=2, is_ready=True, pulse=pulse), 2)
        again = Pulse("training", 2, 0, 0.5, 1.5, 1e-4, 8, training_s=1.0, waited_s=0.5, load_s=7.0)
        metrics.take(ControlState(attempt=2, num_workers=2, is_ready=True, pulse=again, num_losses=1), 2)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory, ray_address) -> Iterator[Prometheus]:
    """It has seen two nights: rates need a before and an after."""
    with started_prometheus(tmp_path_factory.mktemp("prometheus")) as server:
        make_images(tmp_path_factory.mktemp("first"), 2)
        make_shards(10)
        train(40)
        wait_for(server, 'sum(ray_ezigen_items_total{status="done", run=~"monitored-.*"}) == 12')
        wait_for(server, 'sum(ray_ezigen_train_steps_total{run="monitored-adapter"}) == 12')
        make_images(
            tmp_path_factory.mktemp("second"),
            NUM_ITEMS,
            prompts={3: "an [odd] cup", 5: "a [kill] cup", 8: ""},
            subject_uri={6: "missing.png"},
        )
        make_shards(7)
        train(20)
        wait_for(
            server, f'sum(ray_ezigen_items_total{{status="done", run=~"monitored-.*"}}) == {12 + NUM_ITEMS - 4 + 7}'
        )
        wait_for(server, 'sum(ray_ezigen_train_steps_total{run="monitored-adapter"}) == 19')
        yield server


def wait_for(server: Prometheus, expression: str) -> None:
    wait_until(lambda: server.query(expression), EXPORT_S, expression)


def empty_panels(server: Prometheus) -> list[str]:
    """Titles of the panels that have nothing to show now."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    empty = []
    for panel in (panel for panel in dashboard["panels"] if panel["type"] != "row"):
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VALUES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression
            if not server.query(expression):
                empty.append(panel["title"])
    return sorted(empty)


@needs_prometheus
def test_every_panel_shows_something(prometheus):
    deadline = time.monotonic() + EXPORT_S  # a gauge is away for a moment where it was not told in time
    while (empty := empty_panels(prometheus)) != sorted(EMPTY_HERE) and time.monotonic() < deadline:
        time.sleep(1)
    assert empty == sorted(EMPTY_HERE)


@needs_prometheus
def test_every_rule_can_be_evaluated(prometheus):
    wait_until(lambda: "unknown" not in prometheus.rules().values(), EXPORT_S, "the first evaluation")
    assert set(prometheus.rules().values()) == {"ok"}
    wait_for(prometheus, "ezigen:run_active == 0")


@needs_prometheus
def test_every_metric_reaches_prometheus_with_its_labels(prometheus):
    for metric in METRICS:
        name = f"ray_{metric.name}_count" if metric.kind == "histogram" else f"ray_{metric.name}"
        found = prometheus.query(f"last_over_time({name}[2m])")
        labels = {label for series in found for label in series["metric"]}
        assert {"flow", "run", *metric.labels} <= labels, name
    told = set(re.findall(r"^# TYPE ray_(ezigen\w+)", scrape(), re.MULTILINE))
    assert told == {metric.name for metric in METRICS}


@needs_prometheus
def test_numbers_are_those_of_the_runs(prometheus):
    wait_until(lambda: total("ray_ezigen_run_active", run="monitored-catalog") == 0, EXPORT_S, "the gauges")
    told = functools.partial(Scrape().total, run="monitored-catalog")
    items = {code: told("ray_ezigen_items_total", error_code=code) for code in ("", *ErrorCode)}
    assert {code: number for code, number in items.items() if number} == {
        "": 2 + NUM_ITEMS - 4,
        ErrorCode.GENERATION_FAILED: 1,
        ErrorCode.WORKER_DIED: 1,
        ErrorCode.ROW_INVALID: 1,
        ErrorCode.IMAGE_MISSING: 1,
    }
    assert None not in items.values()  # what has not happened is 0, so that its first time is an increase
    done = items[""]
    assert told("ray_ezigen_loops_count") == done
    assert told("ray_ezigen_loops_sum") == done  # one loop each
    assert told("ray_ezigen_worker_losses_total", reason="died") == 2
    assert told("ray_ezigen_items_requeued_total") >= 1
    assert told("ray_ezigen_worker_starts_total") >= 4
    assert told("ray_ezigen_storage_bytes_total", direction="written") > 1000 * done
    assert told("ray_ezigen_run_active") == 0
    work = {state: told("ray_ezigen_run_work", state=state) for state in ("expected", "done", "failed")}
    assert work == {"expected": NUM_ITEMS, "done": NUM_ITEMS - 4, "failed": 4}


@needs_prometheus
def test_shards_and_training_count_on_across_workers(prometheus):
    told = Scrape().total
    assert told("ray_ezigen_items_total", run="monitored-pairs", status="refused", error_code="too_small") == 4
    assert told("ray_ezigen_worker_seconds_total", run="monitored-pairs", part="shard") == 6
    # Per night: 20 s of a first group of workers and 1 s of a second one, of which 2.5 s were spent waiting.
    assert told("ray_ezigen_worker_seconds_total", run="monitored-adapter", part="step") == pytest.approx(2 * 18.5)
    assert told("ray_ezigen_worker_seconds_total", run="monitored-adapter", part="data") == pytest.approx(2 * 2.5)
    assert told("ray_ezigen_train_samples_total", run="monitored-adapter") == 40 + 8 + 20 + 8


def test_a_metric_that_cannot_be_exported_fails_nothing(caplog, monkeypatch):
    monkeypatch.setattr(m, "_EXPORTER", m._Exporter())
    metrics = RunMetrics("f", "r", run_id="1")
    with monkeypatch.context() as patch:
        patch.setattr(m, "_to_ray", lambda _metric: 1 / 0)
        for _ in range(3):
            metrics.add(m.TRAIN_STEPS)
    metrics.add(m.TRAIN_STEPS)
    assert [record.message for record in caplog.records] == ["metrics cannot be exported any more"]


def test_what_is_counted_before_ray_waits_for_it(monkeypatch):
    monkeypatch.setattr(m, "_EXPORTER", m._Exporter())
    run_name = f"early-{os.getpid()}-{time.time_ns()}"
    with monkeypatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)
        metrics = RunMetrics("f", run_name, run_id="1")
        metrics.add(m.TRAIN_STEPS, 2)
        metrics.add(m.TRAIN_STEPS, 3)
        metrics.set(m.TRAIN_LOSS, 0.5)
        metrics.set(m.TRAIN_LOSS, 0.25)
    metrics.add(m.TRAIN_STEPS, 4)
    wait_until(lambda: total("ray_ezigen_train_steps_total", run=run_name) == 9, EXPORT_S, "the export")
    assert total("ray_ezigen_train_loss", run=run_name) == 0.25
