"""Progress and shards, with a clock in the test's hand."""

from datetime import UTC, datetime

import pytest

from ezigen.config import ErrorCode
from tasks.catalog.outcome import Measurements, RunOutcome
from tasks.catalog.progress import ProgressMeter
from tasks.catalog.results import ResultRow
from tasks.catalog.shard_writer import ShardWriter
from tasks.storage import RunOutput
from tasks.storage.lease import LeaseLost


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def row(index: int, **changes) -> ResultRow:
    values = {"status": "done", "attempts": 1, "finished_at": datetime.now(UTC), **changes}
    return ResultRow(item_key=f"{index:032x}", item_id=str(index), row_index=index, run_id="run-1", **values)


def test_progress_is_reported_at_most_twice_a_second():
    clock, seen = Clock(), []
    meter = ProgressMeter(100, seen.append, clock)
    for index in range(100):
        clock.now += 0.1
        meter.add(row(index))
        meter.tick(2, 1)
    meter.tick(0, 1, force=True)
    assert 18 <= len(seen) <= 21
    assert (seen[-1].done, seen[-1].finished, seen[-1].in_flight) == (100, 100, 0)


def test_rate_and_time_left_follow_the_last_minute():
    clock, seen = Clock(), []
    meter = ProgressMeter(1000, seen.append, clock)
    for index in range(200):  # 2 a second, then 1 a second
        clock.now += 0.5 if index < 100 else 1.0
        meter.add(row(index))
        meter.tick(0, 1)
    assert seen[0].eta_s is not None
    assert seen[-1].rate_per_s == pytest.approx(1.0, rel=0.05)
    assert seen[-1].eta_s == pytest.approx(800, rel=0.05)


def test_failures_are_counted_by_code():
    meter = ProgressMeter(2, None)
    meter.add(row(0, status="failed", error_code=ErrorCode.IMAGE_MISSING))
    meter.add(row(1))
    assert (meter.done, meter.failed, dict(meter.by_code)) == (1, 1, {ErrorCode.IMAGE_MISSING: 1})


def test_shards_are_written_when_full_or_old(tmp_path):
    clock = Clock()
    writer = ShardWriter(RunOutput(str(tmp_path)), "run-1", shard_size=3, flush_interval_s=10.0, clock=clock)
    for index in range(4):
        writer.add(row(index))
    assert writer.num_rows == 3
    clock.now += 9.0
    writer.flush_if_due()
    assert writer.num_shards == 1
    clock.now += 1.5
    writer.flush_if_due()
    writer.flush()
    assert (writer.num_shards, writer.num_rows) == (2, 4)
    assert [stored.row_index for stored in RunOutput(str(tmp_path)).read_result_rows()] == [0, 1, 2, 3]


def test_nothing_is_written_after_the_check_says_no(tmp_path):
    def check() -> None:
        raise LeaseLost("gone")

    writer = ShardWriter(RunOutput(str(tmp_path)), "run-1", shard_size=10, flush_interval_s=1.0, check=check)
    writer.add(row(0))
    with pytest.raises(LeaseLost):
        writer.flush()
    assert not list(tmp_path.rglob("*.parquet"))


def test_measurements_tell_networks_from_the_rest():
    measurements = Measurements()
    measurements.add(row(0), {"seconds.transfer": 9.0, "seconds.planning": 0.4, "seconds.idle": 3.0})
    measurements.add(row(1, status="failed"), {"filled.transfer": 6, "slot_steps.transfer": 8, "hits.sketch": 3})
    measurements.add(row(2, num_unet_calls=5), {"seconds.score": 0.5, "seconds.waiting": 0.1, "misses.sketch": 1})
    measurements.add(row(3), {"unet_calls.sketch": 4, "unet_calls.transfer": 12, "seconds.load": 4.0, "halvings": 1})
    found = measurements.to_dict(4.0, 2, "cpu")
    assert (found["images"], found["images_per_s"], found["num_unet_calls"]) == (3, 0.75, 5)
    assert found["share_outside_networks"] == 0.05
    assert found["worker_seconds"] == {
        "idle": 3.0,
        "load": 4.0,
        "planning": 0.4,
        "score": 0.5,
        "transfer": 9.0,
        "waiting": 0.1,
    }
    assert found["unet_calls"] == {"sketch": 4, "transfer": 12}
    assert found["slot_occupancy"] == {"transfer": 0.75}
    assert found["cache_hit_share"] == {"sketch": 0.75}
    assert found["slots_halved"] == 1


def test_an_outcome_speaks_for_itself():
    outcome = RunOutcome("run-1", "finished", total=4, done=3, failed=1, seconds=6.0)
    assert (outcome.seconds_per_image, outcome.failed_share, outcome.stopped) == (2.0, 0.25, False)
    assert RunOutcome("run-1", "finished", total=0).nothing_to_do
