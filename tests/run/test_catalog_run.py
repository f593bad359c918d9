"""A catalog run on a real Ray, with light workers: rows, images, refusals, failures, stopping, running again."""

import dataclasses
import json
import logging
import os
import threading

import pytest
import ray

import tasks.catalog.run as run_module
from ezigen.config import CatalogInputs, ClusterConfig, ConfigurationError, ErrorCode, ModelConfig, SamplerConfig
from tasks.catalog.outcome import TooManyFailures
from tasks.catalog.run import run_catalog
from tasks.storage import RunOutput
from tasks.storage.lease import LeaseLost
from tests.run.catalogs import Computed, assert_complete, image_hashes, resolved_rows, write_catalog
from tests.run.conftest import is_alive, wait_until
from tests.run.driver import SAMPLER, make_plan, run
from tests.run.light import DoomedWorker, LightWorker

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_address")]


def cluster(**changes) -> ClusterConfig:
    address = ray.get_runtime_context().gcs_address
    return ClusterConfig(
        **{"address": address, "num_workers": 2, "num_slots": 2, "num_ahead": 2, "shard_size": 4, **changes}
    )


def inputs(tmp_path, catalog, **changes) -> CatalogInputs:
    return CatalogInputs(catalog_uri=str(catalog), output_uri=str(tmp_path / "out"), **changes)


def run_record(tmp_path) -> dict:
    return json.loads((tmp_path / "out" / "run.json").read_text())


def test_every_row_ends_with_a_result_row(tmp_path, caplog):
    catalog = write_catalog(
        tmp_path,
        12,
        prompts={3: "an [odd] cup", 8: ""},
        subject_uri={5: "missing.png", 6: "../outside.png"},
        item_id={11: "item-1"},
    )
    seen = []
    with caplog.at_level(logging.INFO, "ezigen.worker"):
        outcome = run(inputs(tmp_path, catalog, max_failed_share=0.6), cluster=cluster(), on_progress=seen.append)

    assert (outcome.state, outcome.total, outcome.done, outcome.failed) == ("finished", 12, 7, 5)
    assert outcome.failed_by_code == {
        ErrorCode.GENERATION_FAILED: 1,
        ErrorCode.ROW_INVALID: 1,
        ErrorCode.IMAGE_MISSING: 1,
        ErrorCode.LOCATION_DENIED: 1,
        ErrorCode.DUPLICATE_ID: 1,
    }
    rows = {row.row_index: row for row in RunOutput(str(tmp_path / "out")).read_result_rows()}
    assert sorted(rows) == list(range(12))
    good, odd = rows[0], rows[3]
    assert (good.status, good.num_loops, good.num_unet_calls, good.attempts) == ("done", 1, 10, 1)
    assert (good.width_px, good.height_px, good.preview_panels) == (32, 32, 4)
    assert good.seconds >= 0.02
    assert good.worker.startswith("worker-")
    assert odd.error_message == "ArithmeticError: this prompt is odd"
    assert any("loaded mini" in record.message for record in caplog.records if record.name == "ezigen.worker")

    record = run_record(tmp_path)
    assert record["state"] == "finished"
    assert {name: record["counts"][name] for name in ("rows", "done", "failed", "unfinished")} == {
        "rows": 12,
        "done": 7,
        "failed": 5,
        "unfinished": 0,
    }
    assert record["measurements"]["num_workers"] == 2
    assert record["measurements"]["num_unet_calls"] == 70
    assert record["measurements"]["worker_seconds"]["transfer"] == pytest.approx(7 * 0.02)
    assert record["measurements"]["worker_seconds"]["read"] > 0
    last = seen[-1]
    assert (last.total, last.done, last.failed, last.in_flight) == (12, 7, 5, 0)
    assert [moment.finished for moment in seen] == sorted(moment.finished for moment in seen)


@pytest.mark.filterwarnings("ignore:In the near future")
def test_ray_remembers_nothing_about_items(tmp_path):
    """Its GCS would grow with every one of them."""

    @ray.remote
    def remembered():
        return None

    def names():
        return {event["cat"].removeprefix("task::") for event in ray.timeline()}

    outcome = run(inputs(tmp_path, write_catalog(tmp_path, 60)), cluster=cluster())
    assert outcome.done == 60
    ray.get(remembered.remote())
    wait_until(lambda: any("remembered" in name for name in names()), what="Ray's memory of a task")
    assert not [name for name in names() if LightWorker.__name__ in name]


def test_a_finished_run_does_nothing_until_failed_items_are_asked_for(tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path, 6, subject_uri={2: "late.png"})
    run(inputs(tmp_path, catalog), cluster=cluster(num_workers=1))
    record, computed = run_record(tmp_path), Computed(tmp_path / "out").keys()

    def refuse(_config):
        raise AssertionError("Ray must not be started")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "connect", refuse)
        again = run(inputs(tmp_path, catalog), cluster=cluster())
    assert again.nothing_to_do
    assert again.state == "finished"
    assert run_record(tmp_path) == record
    assert Computed(tmp_path / "out").keys() == computed

    (tmp_path / "late.png").write_bytes((tmp_path / "red.png").read_bytes())
    retried = run(inputs(tmp_path, catalog, retry_failed=True), cluster=cluster(num_workers=1))
    assert (retried.total, retried.done) == (1, 1)
    assert resolved_rows(tmp_path / "out")["item-2"].attempts == 2
    assert_complete(tmp_path / "out", 6)
    assert len(run_record(tmp_path)["history"]) == 1


def test_the_same_run_on_s3_gives_the_same_rows_and_images(tmp_path, s3_folder, tiny_model):
    """With the real method on a tiny stack, whose pictures come from the store and whose images go there.

    Ray runs since before the credentials were set here, so the workers can only have them from the run.
    """
    catalog = write_catalog(tmp_path, 6, prompts={3: ""}, subject_uri={4: "missing.png"})
    folder = RunOutput(s3_folder)
    for path in tmp_path.glob("*.*"):
        folder.write(path.name, path.read_bytes())
    sampler = SamplerConfig(num_steps=4, guidance_scale=2.0)
    options = {"worker": run_module.CatalogWorker, "model": tiny_model, "sampler": sampler}
    options["cluster"] = cluster(num_workers=1)
    run(inputs(tmp_path, catalog, max_failed_share=0.5), **options)

    given = CatalogInputs(catalog_uri=f"{s3_folder}/catalog.csv", output_uri=f"{s3_folder}/out", max_failed_share=0.5)
    outcome = run(given, **options)
    assert (outcome.done, outcome.failed) == (4, 2)
    stored, local = resolved_rows(given.output_uri), resolved_rows(tmp_path / "out")
    assert settled(stored) == settled(local)
    done = [row for row in stored.values() if row.status == "done"]
    assert all(row.num_loops >= 3 and row.similarities and row.preview for row in done)
    assert {row.error_code for row in stored.values()} == {None, ErrorCode.ROW_INVALID, ErrorCode.IMAGE_MISSING}
    for row in done:
        assert RunOutput(given.output_uri).read(row.image_uri) == (tmp_path / "out" / row.image_uri).read_bytes()
    assert run(given, **options).nothing_to_do


def settled(rows) -> dict[str, dict]:
    """Every field that a second run would give again: all but the run's name, its clock, and who did the work."""
    changing = {"run_id", "finished_at", "seconds", "worker"}
    return {
        name: {field: value for field, value in dataclasses.asdict(row).items() if field not in changing}
        for name, row in rows.items()
    }


def test_a_row_that_kills_its_worker_is_condemned_alone(tmp_path):
    catalog = write_catalog(tmp_path, 12, prompts={5: "a cup that does [kill]"})
    outcome = run(inputs(tmp_path, catalog), DoomedWorker, cluster=cluster(num_slots=3))
    assert (outcome.done, outcome.failed) == (11, 1)
    assert_complete(tmp_path / "out", 12, failed={"item-5"})
    row = resolved_rows(tmp_path / "out")["item-5"]
    assert (row.error_code, row.attempts) == (ErrorCode.WORKER_DIED, 2)


def test_too_many_failures_are_raised_after_everything_else_is_done(tmp_path):
    catalog = write_catalog(tmp_path, 6, subject_uri={1: "no.png", 3: "no.png", 4: "no.png"})
    with pytest.raises(TooManyFailures, match="max_failed_share") as raised:
        run(inputs(tmp_path, catalog, max_failed_share=0.4), cluster=cluster(num_workers=1))
    assert raised.value.outcome.done == 3
    assert_complete(tmp_path / "out", 6, failed={"item-1", "item-3", "item-4"})
    record = run_record(tmp_path)
    assert record["state"] == "failed"
    assert "3 of 6" in record["message"]


def test_what_an_unfinished_run_left_half_written_is_removed(tmp_path):
    catalog, output = write_catalog(tmp_path, 4), RunOutput(str(tmp_path / "out"))
    few = inputs(tmp_path, catalog, limit=1)
    assert run(few, cluster=cluster(num_workers=1)).done == 1
    for state in ("running", "failed", "stopped"):
        output.write_run(dataclasses.replace(output.read_run(), state=state))
        half = next((tmp_path / "out" / "images").iterdir()) / ".partial-0123"
        half.write_bytes(b"half a picture")
        os.utime(half, (0, 0))
        assert run(few, cluster=cluster(num_workers=1)).done == 1
        assert not half.exists(), state
    assert_complete(tmp_path / "out", 4)


def test_stopping_keeps_what_is_finished_and_the_next_run_does_the_rest(tmp_path):
    num_items = 400  # seconds of work, because progress is reported twice a second
    catalog = write_catalog(tmp_path, num_items)
    stop = threading.Event()

    def stop_soon(progress) -> None:
        if progress.done:
            stop.set()

    outcome = run(inputs(tmp_path, catalog), cluster=cluster(), on_progress=stop_soon, stop=stop)
    assert outcome.stopped
    assert 0 < outcome.done < num_items
    assert run_record(tmp_path)["state"] == "stopped"
    assert len(resolved_rows(tmp_path / "out")) == outcome.done
    wait_until(lambda: not any(is_alive(pid) for pid in Computed(tmp_path / "out").pids()), 10, "the actors' end")

    rest = run(inputs(tmp_path, catalog), cluster=cluster())
    assert rest.done == num_items - outcome.done
    assert_complete(tmp_path / "out", num_items)


def test_a_model_that_cannot_be_loaded_fails_the_run_and_says_why(tmp_path):
    catalog = write_catalog(tmp_path, 4)
    model = ModelConfig(model=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="nowhere"):
        run(inputs(tmp_path, catalog), run_module.CatalogWorker, cluster=cluster(num_workers=1), model=model)
    record = run_record(tmp_path)
    assert record["state"] == "failed"
    assert "nowhere" in record["message"]
    assert not (tmp_path / "out" / "results").exists()


def test_a_run_that_lost_its_lease_writes_nothing_more(tmp_path):
    catalog = write_catalog(tmp_path, 20)

    class LostLater:
        checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks > 2:
                raise LeaseLost("another run took over")

    given = inputs(tmp_path, catalog)
    with pytest.raises(LeaseLost):
        run_catalog(
            make_plan(given),
            RunOutput(given.output_uri),
            inputs=given,
            model=ModelConfig(),
            sampler=SAMPLER,
            cluster=cluster(),
            lease=LostLater(),
            worker=LightWorker,
        )
    assert len(list((tmp_path / "out" / "results").glob("*.parquet"))) == 1
    assert run_record(tmp_path)["state"] == "running"


def test_a_contradiction_of_devices_is_refused(tmp_path):
    catalog = write_catalog(tmp_path, 2)
    config = cluster(accelerator="gpu", num_workers=1)
    with pytest.raises(ConfigurationError, match=r"model\.device"):
        run(inputs(tmp_path, catalog), cluster=config, model=ModelConfig(device="cpu"))


def test_other_workers_mates_and_order_give_the_same_images(tmp_path, tiny_model):
    """With the real method on a tiny stack: one worker against two, another order, another number of mates."""
    sampler = SamplerConfig(num_steps=4, guidance_scale=2.0)
    catalog = write_catalog(tmp_path / "a", 5)
    lines = catalog.read_text().splitlines()
    turned = write_catalog(tmp_path / "b", 5)
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")

    def images(catalog_path, **changes):
        out = catalog_path.parent / "out"
        given = CatalogInputs(catalog_uri=str(catalog_path), output_uri=str(out))
        config = cluster(num_slots=3, **changes)
        run(given, run_module.CatalogWorker, cluster=config, model=tiny_model, sampler=sampler)
        return image_hashes(out), resolved_rows(out)

    two, rows = images(catalog, num_workers=2)
    one, _ = images(turned, num_workers=1)
    assert len(two) == 5
    assert two == one
    assert len(set(two.values())) == 5
    assert all(row.num_unet_calls > 8 and row.num_loops >= 3 for row in rows.values())
    assert all(row.preview_panels == row.num_loops + 3 for row in rows.values())
    measured = run_record(tmp_path / "a")["measurements"]
    assert measured["unet_calls"]["encode"] <= 5
    assert measured["num_unet_calls"] >= sum(measured["unet_calls"].values())
    assert 0 < measured["slot_occupancy"]["transfer"] <= 1
