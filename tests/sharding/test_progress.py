"""What a run over shards says about itself, with a clock of the test's own."""

import pytest

from tasks.sharding import ShardMeter, ShardProgress, ShardReport, StoredFile
from tasks.sharding.board import Board


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report(shard: str, rows: int) -> ShardReport:
    return ShardReport(
        shard, rows, {"crowd": 1}, (StoredFile(f"pairs/{shard}", 5, rows, "0" * 32),), 1.5, "node/1", {"coco": 3}
    )


def test_rates_are_of_this_run_and_what_is_left_of_all():
    clock, seen = Clock(), list[ShardProgress]()
    meter = ShardMeter("pairs", 100, 10, seen.append, done=40, refused=2, shards_done=4, clock=clock)
    meter.tick(0, 0)
    assert (seen[-1].done, seen[-1].rate_per_s, seen[-1].eta_s) == (40, 0.0, None)
    clock.now += 10
    meter.add(report("r0-00004", 20))
    meter.tick(2, 2)
    assert (seen[-1].done, seen[-1].refused, seen[-1].shards_done) == (60, 3, 5)
    assert seen[-1].rate_per_s == pytest.approx(2.0)
    assert seen[-1].eta_s == pytest.approx(20.0)
    meter.expect(200, 20)
    clock.now += 100
    meter.tick(1, 2)
    assert (seen[-1].total, seen[-1].shards_total, seen[-1].rate_per_s) == (200, 20, 0.0)  # nothing in the last minute


def test_reports_come_at_most_twice_a_second():
    clock, seen = Clock(), list[ShardProgress]()
    meter = ShardMeter("subjects", 10, 1, seen.append, clock=clock)
    for _ in range(20):
        meter.tick(0, 1)
        clock.now += 0.1
    assert len(seen) == 4
    meter.tick(0, 1, force=True)
    assert len(seen) == 5


def test_a_report_survives_its_way_to_the_driver():
    assert ShardReport.from_json(report("r0-00001", 7).to_json()) == report("r0-00001", 7)


def test_the_board_blames_only_what_was_running():
    board = Board()
    for _ in range(3):
        board.worker_opens("one")
        board.worker_ready("one")
        assert board.begin("one", "bad") == "make"
    assert board.worker_opens("one")  # a death while making does not count against the worker
    board.worker_ready("one")
    assert board.begin("one", "bad") == "condemn"
    assert board.begin("one", "good") == "make"
    board.end("one")
    assert board.worker_opens("one")
    assert board.state().num_deaths == 3
    board.worker_ready("one")
    assert board.state().begun is None
    board.stop()
    assert board.begin("one", "late") == "skip"
    assert board.state().begun == {"bad", "good"}


def test_a_worker_that_only_dies_while_it_starts_is_given_up():
    board = Board()
    assert [board.worker_opens("one") for _ in range(4)] == [True, True, True, False]
    assert board.worker_opens("two")
