"""The pool on a real Ray, with workers that really die."""

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
import ray

from ezigen.config import ConfigurationError, ErrorCode
from tasks.cluster.planner import Condemned, PoolFailed, PoolLimits
from tasks.cluster.pool import ActorPool, Finished
from tests.run.conftest import is_alive, wait_until
from tests.run.toys import CrashingWorker, Diary, SlowWorker, ToyWorker, UnfitWorker

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_address")]


@dataclass
class Ended:
    done: list[str] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    condemned: dict[str, Condemned] = field(default_factory=dict)

    def add(self, event) -> None:
        if isinstance(event, Finished):
            assert event.result == f"done {event.ticket.item}"
            self.done.append(event.ticket.item)
            self.attempts[event.ticket.item] = event.ticket.attempts
        elif isinstance(event, Condemned):
            self.condemned[event.ticket.item] = event

    def items(self) -> Counter:
        return Counter([*self.done, *self.condemned])


class Pool:
    def __init__(self, tmp_path) -> None:
        self.diary = Diary(tmp_path / "diary")
        self.stop = threading.Event()
        self.ended = Ended()

    def make(self, items, worker=ToyWorker, affinity=None, **limits) -> ActorPool:
        values = {"num_workers": 2, "num_slots": 3, "num_ahead": 2, "item_timeout_s": 60.0, "start_timeout_s": 60.0}
        bounds = PoolLimits(**{**values, **limits})
        num_threads = bounds.num_slots + bounds.num_ahead + 1
        actor_class = ray.remote(worker).options(num_cpus=1, max_concurrency=num_threads)

        def spawn(_name: str, num_slots: int):
            return actor_class.remote(self.diary.path, num_slots)

        return ActorPool(spawn, items, bounds, affinity=affinity, stop=self.stop)

    def run(self, items, worker=ToyWorker, on_event=lambda: None, **options) -> Ended:
        for event in self.make(items, worker, **options).run():
            self.ended.add(event)
            on_event()
        return self.ended

    def assert_all_gone(self) -> None:
        wait_until(lambda: not any(is_alive(pid) for pid in self.diary.pids()), 10, "the end of every actor")


@pytest.fixture
def pool(tmp_path):
    pool = Pool(tmp_path)
    yield pool
    pool.assert_all_gone()


def numbers(count: int, deed: str = "") -> list[str]:
    return [f"{index}:{deed}" for index in range(count)]


def test_workers_run_as_many_items_side_by_side_as_they_have_slots(pool):
    items = numbers(12, "sleep0.3")
    ended = pool.run(items, num_workers=1)
    assert ended.items() == Counter(items)
    assert set(ended.attempts.values()) == {1}
    assert max(len(others) for others in pool.diary.company().values()) >= 3 - 1


def test_a_poison_item_is_condemned_alone_and_its_neighbours_are_done(pool):
    items = numbers(30)
    items[13] = "13:kill"
    ended = pool.run(items)
    assert set(ended.condemned) == {"13:kill"}
    condemned = ended.condemned["13:kill"]
    assert condemned.code is ErrorCode.WORKER_DIED
    assert "SYSTEM_ERROR" in condemned.message
    assert ended.items() == Counter(items)
    _, last = pool.diary.pids_of("13:kill")
    assert pool.diary.company()[last, "13:kill"] == set()
    assert condemned.ticket.attempts == 2


def test_what_was_answered_before_a_death_is_not_done_again(pool):
    items = numbers(30)
    items[13] = "13:kill"
    pool.run(items)
    assert Counter(pool.diary.of("end")) == Counter(item for item in items if item != "13:kill")


def test_everything_that_can_go_wrong_in_one_run(pool):
    items = numbers(24)
    bad = {3: "kill", 9: "raise", 20: "broken"}
    for index, deed in bad.items():
        items[index] = f"{index}:{deed}"
    ended = pool.run(items)
    assert {item: condemned.code for item, condemned in ended.condemned.items()} == {
        "3:kill": ErrorCode.WORKER_DIED,
        "9:raise": ErrorCode.GENERATION_FAILED,
        "20:broken": ErrorCode.WORKER_DIED,
    }
    assert ended.condemned["9:raise"].message == "ValueError: this one is odd"
    assert ended.condemned["20:broken"].message == "the device is gone"
    assert ended.items() == Counter(items)


def test_actors_killed_from_outside_are_replaced_and_nothing_is_lost(pool):
    items = numbers(80, "sleep0.02")
    killed: set[int] = set()

    def kill_one() -> None:
        # Far enough apart for the suspects of one death to be cleared before the next.
        if len(killed) < 2 and len(pool.ended.done) > 4 + 36 * len(killed):
            alive = [pid for pid in pool.diary.pids() - killed if is_alive(pid)]
            if alive:
                os.kill(alive[0], signal.SIGKILL)
                killed.add(alive[0])

    ended = pool.run(items, on_event=kill_one)
    assert len(killed) == 2
    assert ended.items() == Counter(items)
    assert not ended.condemned


def test_items_of_a_group_meet_and_what_is_ahead_moves_to_free_slots(pool):
    items = [*numbers(8, "sleep2.5"), *(f"{index}:sleep0.1" for index in range(8, 16))]
    halves = items[:8], items[8:]
    ended = pool.run(items, num_slots=2, num_ahead=6, affinity=lambda item: item.partition(":")[2])
    assert ended.items() == Counter(items)
    assert Counter(pool.diary.of("run")) == Counter(items)
    assert set(ended.attempts.values()) == {1}
    slow, quick = ([pid for pid, verb, item in pool.diary.lines() if verb == "run" and item in part] for part in halves)
    assert len(set(quick)) == 1  # they met on one worker
    assert quick[0] not in slow[:2]
    assert quick[0] in slow  # later it did some of the slow ones


def test_a_worker_without_work_gives_its_place_back_before_the_end(pool):
    """While one item goes on, the other worker's core is free for other runs."""
    seen = []
    running = pool.make(["0:sleep4", "1:"], num_slots=1, num_ahead=0, retire_after_s=1.0)
    for event in running.run():
        pool.ended.add(event)
        seen.append((running.planner.num_ready, sum(is_alive(pid) for pid in pool.diary.pids())))
    assert pool.ended.items() == Counter(["0:sleep4", "1:"])
    assert (2, 2) in seen
    assert (1, 1) in seen
    assert running.num_lost == 0


def test_an_item_that_hangs_is_timed_out_alone(pool):
    items = numbers(7)
    items[2] = "2:sleep60"
    ended = pool.run(items, item_timeout_s=1.0)
    assert {item: condemned.code for item, condemned in ended.condemned.items()} == {"2:sleep60": ErrorCode.TIMED_OUT}
    assert "item_timeout_s" in ended.condemned["2:sleep60"].message
    assert ended.items() == Counter(items)


def test_a_worker_that_cannot_work_fails_the_run_with_its_own_words(pool):
    with pytest.raises(ConfigurationError, match="there is none at /nowhere"):
        pool.run(numbers(8), UnfitWorker)
    assert len(pool.diary.lines()) <= 2


def test_a_worker_that_crashes_while_loading_is_tried_a_few_times(pool):
    with pytest.raises(PoolFailed, match="no worker could start, 3 tries"):
        pool.run(numbers(8), CrashingWorker, num_workers=1)
    assert len(pool.diary.lines()) == 3


def test_a_worker_that_never_ends_loading_fails_the_run(pool):
    with pytest.raises(PoolFailed, match="start_timeout_s"):
        pool.run(numbers(8), SlowWorker, start_timeout_s=2.0)


def test_stopping_finishes_what_runs_and_leaves_what_waits(pool):
    items = [f"{index}:sleep{0.2 + 0.01 * (index % 7)}" for index in range(100)]

    def stop() -> None:
        if len(pool.ended.done) > 4:
            pool.stop.set()

    ended = pool.run(items, num_slots=2, num_ahead=30, on_event=stop)
    assert sorted(ended.done) == sorted(pool.diary.of("run")) == sorted(pool.diary.of("end"))
    assert 5 < len(ended.done) < 30
    assert not ended.condemned


def test_stopping_kills_what_outlasts_the_grace_period(pool):
    def stop() -> None:
        if any(verb == "run" for _, verb, _ in pool.diary.lines()):
            pool.stop.set()

    began = time.monotonic()
    ended = pool.run(numbers(4, "sleep60"), on_event=stop, grace_period_s=1.0)
    assert time.monotonic() - began < 20
    assert not ended.items()


def test_a_consumer_that_leaves_takes_the_actors_with_it(pool):
    for event in pool.make(numbers(50, "sleep0.1")).run():
        if isinstance(event, Finished):
            break
    pool.assert_all_gone()
