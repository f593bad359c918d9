"""What can be said of a run from its output alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from ezigen.config import ConfigurationError, ErrorCode
from flows.command_line import app
from flows.status_listing import watch_status
from tasks.catalog.status import StatusReader
from tasks.storage import Lease, RunOutput, RunRecord, compact_results
from tasks.storage.compaction import is_merged
from tasks.storage.holder import Holder
from tasks.storage.output import StoredImage
from tests.evaluation.results import done_row

NOW = datetime(2026, 11, 26, 3, tzinfo=UTC)
RECORD = RunRecord("run", "running", (NOW - timedelta(hours=1)).isoformat(), counts={"rows": 500, "to_do": 400})

IMAGE = StoredImage("images/00/0.png", "0" * 64, 1)


@pytest.fixture
def output(tmp_path):
    output = RunOutput(str(tmp_path))
    output.write_run(RECORD)
    return output


def store(output, number, *ages_s, worker="w0", code=None, run="run"):
    """A shard of rows that ended so many seconds before NOW."""
    rows = []
    for place, age in enumerate(ages_s):
        row = replace(
            done_row("an item", f"{number:016x}{place:016x}", IMAGE),
            worker=worker,
            run_id=run,
            finished_at=NOW - timedelta(seconds=age),
        )
        rows.append(row if code is None else replace(row, status="failed", error_code=code, image_uri=None))
    output.write_results(run, number, rows)


def test_counts_rate_and_rest_are_those_of_the_last_minutes(output):
    reader = StatusReader(output)
    with Lease(output, "somebody"):
        empty = reader.read(NOW)
        assert (empty.is_running, empty.total, empty.finished, empty.eta_s, empty.cost_per_image(2.0)) == (
            True,
            400,
            0,
            None,
            None,
        )
        store(output, 0, *range(1000, 3000, 10))  # an hour ago
        store(output, 1, *range(60, 300, 4), worker="w1")
        store(output, 2, *range(60, 300, 4), worker="w2")
        store(output, 3, 100, 120, worker="w2", code=ErrorCode.GENERATION_FAILED)
        store(output, 0, 5, run="another")
        status = reader.read(NOW)
    assert (status.done, status.failed) == (200 + 120, 2)
    assert status.failed_by_code == {ErrorCode.GENERATION_FAILED: 2}
    assert status.workers == 2
    assert status.last_result_at == NOW - timedelta(seconds=60)
    # 122 of the last 300 s, of which the last 60 are not stored yet
    assert status.rate_per_s == pytest.approx(122 / 240)
    assert status.eta_s == pytest.approx((400 - 322) / status.rate_per_s)
    images_per_hour = 3600 * status.rate_per_s * 320 / 322
    assert status.cost_per_image(2.0) == pytest.approx(2 * 2.0 / images_per_hour)
    assert StatusReader(output).read(NOW).done == status.done  # and at once


def test_a_shard_is_read_once(output):
    reader = StatusReader(output)
    store(output, 0, 10, 20)
    assert reader.read(NOW).done == 2
    (shard,) = output.list_results()
    output.filesystem.pipe_file(shard.path, b"x" * shard.num_bytes)  # the same size: it is taken for the same
    store(output, 1, 5)
    assert reader.read(NOW).done == 3
    output.write_run(replace(RECORD, run_id="next"))
    assert reader.read(NOW).done == 0


def test_merged_rows_count_as_before_and_once(output):
    reader = StatusReader(output)
    store(output, 99, 5, 10, run="earlier")
    for number in range(20):
        store(output, number, 10, 20 + number)
    store(output, 20, 30, code=ErrorCode.IMAGE_MISSING)
    inputs = {shard.path: output.filesystem.cat_file(shard.path) for shard in output.list_results()}
    before = reader.read(NOW)
    assert (before.done, before.failed) == (40, 1)
    compact_results(output, lambda: None)
    assert [is_merged(shard) for shard in output.list_results()] == [True]
    assert reader.read(NOW) == before
    for path, data in list(inputs.items())[::2]:  # as a merge leaves it that is killed among its deletions
        output.filesystem.pipe_file(path, data)
    assert reader.read(NOW) == before
    store(output, 21, 1)
    for one in (reader, StatusReader(output)):
        assert (one.read(NOW).done, one.read(NOW).failed) == (41, 1)


def test_a_merge_under_the_reader_is_no_error(output, monkeypatch):
    for number in range(20):
        store(output, number, 10)
    listing, shards = output.list_results, []

    def list_then_merge():
        shards.append(listing())
        if len(shards) == 1:
            compact_results(RunOutput(output.root_uri), lambda: None)
        return shards[-1]

    monkeypatch.setattr(output, "list_results", list_then_merge)
    assert StatusReader(output).read(NOW).done == 20
    assert [len(found) for found in shards] == [20, 1]


def test_who_ended_without_a_word_is_lost(output):
    child = subprocess.run(
        [sys.executable, "-c", "import os, time; print(os.getpid())"], capture_output=True, check=True, text=True
    )
    dead = replace(Holder.here("somebody", 0.5), pid=int(child.stdout))
    output.write("lease.json", dead.to_json())
    status = StatusReader(output).read()
    assert (status.is_lost, status.is_running, status.holder) == (True, False, None)
    output.write("lease.json", replace(dead, machine="another").to_json())
    elsewhere = StatusReader(output).read()  # nobody here can see whether it lives
    assert elsewhere.is_running
    assert elsewhere.holder.pid == dead.pid
    with Lease(output, "somebody else", ttl_s=0.5, wait=True):
        assert StatusReader(output).read().holder.pid == os.getpid()
    assert StatusReader(output).read().is_lost


def test_a_run_that_ended_says_what_it_cost(output):
    store(output, 0, 10, 20, 30)
    store(output, 1, 10, code=ErrorCode.GENERATION_FAILED)
    started = NOW - timedelta(hours=3)
    counts = {"done": 3, "failed": 1, "refused": 1, "unfinished": 2}
    ended = replace(
        RECORD, state="finished", started_at=started.isoformat(), finished_at=NOW.isoformat(), counts=counts
    )
    output.write_run(replace(ended, measurements={"num_workers": 4}))
    status = StatusReader(output).read(NOW)
    assert (status.total, status.is_running, status.is_lost) == (6, False, False)
    assert status.cost_per_image(2.5) == pytest.approx(2.5 * 4 * 3 / 3)
    output.write_run(ended)
    assert StatusReader(output).read(NOW).cost_per_image(2.5) is None


# ---- the command


def run(*arguments):
    result = CliRunner().invoke(app, ["status", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_people_and_machines_are_told(output):
    store(output, 0, 10, 20)
    store(output, 1, 10, code=ErrorCode.GENERATION_FAILED)
    code, text = run(output.root_uri, "--price", 2)
    assert code == 1
    assert "lost: it ended without a word; run it again" in text
    assert "items 3 of 400: 2 done, 1 failed" in text
    assert "generation_failed 1: " in text
    with Lease(output, "somebody"):
        code, text = run(output.root_uri)
        assert code == 0
        assert "running" in text
        assert "held by somebody (host " in text
        told = json.loads(CliRunner().invoke(app, ["status", output.root_uri, "--json"]).output)
    assert (told["state"], told["total"], told["done"], told["failed_by_code"]) == (
        "running",
        400,
        2,
        {"generation_failed": 1},
    )
    assert told["cost_per_image"] is None


def test_what_is_no_output_is_told(tmp_path):
    code, text = run(tmp_path)
    assert code == 2
    assert "no run has written here" in text
    with pytest.raises(ConfigurationError, match="holds no run"):
        StatusReader(RunOutput(str(tmp_path))).read()
    assert run(tmp_path, "--watch", "--json")[0] == 2


def test_watching_ends_with_the_run(output):
    lease = Lease(output, "somebody")
    lease.acquire()
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            output.write_run(RECORD.closed("finished", {"done": 0, "failed": 0, "unfinished": 0}))
            lease.release()

    assert watch_status(StatusReader(output), price=None, sleep=sleep) == 0
    assert len(waits) == 2
