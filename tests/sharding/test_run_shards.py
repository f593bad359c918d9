"""Shards through Ray Data: whatever happens to a worker, every other shard is made, and the guilty one is named."""

import functools
import os
import threading
from pathlib import Path

import pytest

from ezigen.config import ConfigurationError, RayConfig
from tasks.cluster.planner import PoolFailed
from tasks.sharding import ShardReport, ShardsFailed, run_shards
from tasks.sharding.metrics import ShardMetrics
from tasks.sharding.progress import ShardMeter
from tasks.storage import OutputFolder
from tests.monitoring.scraping import total
from tests.run.conftest import is_alive, wait_until
from tests.sharding.toys import Diary, ToyWork

pytestmark = pytest.mark.slow


def names(number: int, **deeds: str) -> list[str]:
    """r0-00000 and so on; `d3="kill"` gives shard 3 a deed."""
    return [f"r0-{i:05d}" + (f":{deeds[f'd{i}']}" if f"d{i}" in deeds else "") for i in range(number)]


class Run:
    """One call of run_shards on a Ray that is shared by the tests of this file, and what came of it."""

    def __init__(self, folder: Path, address: str, opening: str = "", **cluster: float) -> None:
        self.folder = folder
        self.work = ToyWork(OutputFolder(str(folder)), opening)
        self.cluster = RayConfig(address=address, num_workers=2, **cluster)
        self.reports: list[ShardReport] = []
        self.ticks: list[tuple[int, int]] = []
        self.diary = Diary(folder)

    def __call__(self, shards: list[str], **options) -> "Run":
        on_report = options.pop("on_report", self.reports.append)
        run_shards(
            self.work,
            shards,
            cluster=self.cluster,
            on_report=on_report,
            tick=lambda *numbers: self.ticks.append(numbers),
            **options,
        )
        return self

    @property
    def made(self) -> set[str]:
        return {path.name for path in (self.folder / "made").glob("*")}


@pytest.fixture
def run(tmp_path, ray_address):
    return Run(tmp_path, ray_address)


def assert_no_worker_left(diary: Diary) -> None:
    wait_until(lambda: not [pid for pid in diary.pids() if is_alive(pid)], 30, "the end of the workers")


def test_every_shard_is_made_once_and_reported(run):
    shards = names(20, d0="meet")
    run(shards)
    assert sorted(report.shard for report in run.reports) == shards
    assert run.diary.count("begin") == 20
    assert run.diary.count("open") == len(run.diary.pids()) == 2
    first = min(run.reports, key=lambda report: report.shard)
    assert (first.rows, first.refused, first.counts) == (2, {"odd": 1}, {"toys": 2})
    assert first.files[0].num_bytes == (run.folder / first.files[0].path).stat().st_size
    assert first.worker.partition("/")[2] in {str(pid) for pid in run.diary.pids()}
    assert first.seconds > 0
    assert max(ready for _, ready in run.ticks) == 2
    assert_no_worker_left(run.diary)


def test_a_shard_that_kills_its_worker_is_named_after_all_others_are_done(run):
    metrics = ShardMetrics("toys", run.folder.name, ShardMeter("pairs", 16, 8, None), run_id="1")
    with pytest.raises(ShardsFailed) as failed:
        run(names(8, d1="kill", d4="once"), metrics=metrics)
    assert [(failure.shard, failure.worker_died) for failure in failed.value.failures] == [("r0-00001:kill", True)]
    assert "r0-00001:kill" in str(failed.value)
    assert run.diary.count("begin", "r0-00001:kill") == 3
    assert run.made == set(names(8, d1="kill", d4="once")) - {"r0-00001:kill"}
    assert run.diary.count("begin", "r0-00004:once") == 2  # an innocent death is repeated
    assert_no_worker_left(run.diary)
    told = functools.partial(total, run=run.folder.name)
    wait_until(lambda: told("ray_ezigen_shards_written_total") == 7, 30, "the export of metrics")
    assert told("ray_ezigen_items_total", status="done") == 14
    assert told("ray_ezigen_items_total", status="refused", error_code="odd") == 7
    assert told("ray_ezigen_worker_losses_total", reason="died") >= 2
    assert told("ray_ezigen_worker_starts_total") >= 2
    assert told("ray_ezigen_storage_bytes_total", direction="written") > 0
    assert told("ray_ezigen_run_active") == 0


def test_a_shard_that_raises_is_named_and_not_tried_again(run):
    with pytest.raises(ShardsFailed, match="ValueError: this shard is odd") as failed:
        run(names(6, d0="raise", d3="raise"))
    assert [failure.shard for failure in failed.value.failures] == ["r0-00000:raise", "r0-00003:raise"]
    assert not any(failure.worker_died for failure in failed.value.failures)
    assert run.diary.count("begin") == 6
    assert len(run.reports) == 4


def test_a_worker_killed_from_outside_costs_its_shard_one_more_try(run):
    def kill_first(report: ShardReport) -> None:
        if not run.reports:
            os.kill(int(report.worker.partition("/")[2]), 9)
        run.reports.append(report)

    shards = [f"{name}:sleep0.3" for name in names(10)]
    run(shards, on_report=kill_first)
    assert sorted(report.shard for report in run.reports) == shards
    assert len(run.diary.pids()) == 3


def test_stop_lets_what_is_in_flight_finish_and_begins_nothing_more(run):
    stop = threading.Event()

    def stop_at_first(report: ShardReport) -> None:
        run.reports.append(report)
        stop.set()

    run([f"{name}:sleep0.5" for name in names(30)], on_report=stop_at_first, stop=stop)
    assert 1 <= len(run.reports) <= 8
    assert run.diary.count("begin") == run.diary.count("end") == len(run.reports) == len(run.made)
    assert_no_worker_left(run.diary)


def test_what_does_not_finish_within_the_grace_period_is_ended(tmp_path, ray_address):
    run, stop = Run(tmp_path, ray_address, grace_period_s=1.0), threading.Event()

    def stop_when_begun() -> None:
        if run.diary.count("begin"):
            stop.set()

    run([f"{name}:sleep300" for name in names(4)], check=stop_when_begun, stop=stop)
    assert not run.reports
    assert not run.made
    assert_no_worker_left(run.diary)


def test_a_check_that_raises_ends_every_worker_at_once(run):
    def lose_when_begun() -> None:
        if run.diary.count("begin"):
            raise PermissionError("the lease is lost")

    with pytest.raises(PermissionError, match="the lease is lost"):
        run([f"{name}:sleep300" for name in names(4)], check=lose_when_begun)
    assert_no_worker_left(run.diary)
    assert not run.made


def test_a_configuration_that_can_never_work_ends_the_run_with_its_own_words(tmp_path, ray_address):
    run = Run(tmp_path, ray_address, "refuse")
    with pytest.raises(ConfigurationError, match="there is none at /nowhere"):
        run(names(4))
    assert run.diary.count("begin") == 0


@pytest.mark.parametrize(("opening", "reason"), [("raise", "the disk is odd"), ("kill", "died 3 times while")])
def test_workers_that_cannot_start_end_the_run(tmp_path, ray_address, opening, reason):
    run = Run(tmp_path, ray_address, opening)
    with pytest.raises(PoolFailed, match=reason):
        run(names(2))
    assert run.diary.count("begin") == 0


def test_workers_that_take_too_long_to_start_end_the_run(tmp_path, ray_address):
    run = Run(tmp_path, ray_address, "sleep300", start_timeout_s=3.0)
    with pytest.raises(PoolFailed, match=r"cluster\.start_timeout_s"):
        run(names(2))
    assert_no_worker_left(run.diary)


def test_no_shards_need_no_ray(tmp_path):
    run = Run(tmp_path, "127.0.0.1:1")  # where no Ray can be
    run([])
    with pytest.raises(ConfigurationError):
        run(names(1))
