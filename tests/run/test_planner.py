"""The pool's decisions, without Ray: every item ends exactly once, and only the guilty are condemned."""

import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezigen.config import ErrorCode
from tasks.cluster.planner import Batch, BatchPlanner, Condemned, Loss, PoolFailed, PoolLimits


def limits(**changes) -> PoolLimits:
    return PoolLimits(**{"num_workers": 2, "batch_size": 4, "item_timeout_s": 10.0, "start_timeout_s": 60.0, **changes})


def start_all(planner: BatchPlanner, now: float = 0.0) -> list[int]:
    workers = planner.plan_starts(now)
    for worker in workers:
        planner.worker_ready(worker)
    return workers


def values(batch: Batch) -> list[int]:
    return [ticket.item for ticket in batch.tickets]


def only_batch(planner: BatchPlanner, now: float = 0.0) -> tuple[int, Batch]:
    (assignment,) = planner.plan_batches(now)
    return assignment.worker, assignment.batch


@dataclass
class World:
    """Workers that obey a list of bad items; time passes with every event."""

    planner: BatchPlanner
    kills: frozenset[int] = frozenset()
    hangs: frozenset[int] = frozenset()
    too_large: frozenset[int] = frozenset()
    raises: frozenset[int] = frozenset()
    monitor_kills: frozenset[int] = frozenset()
    done: list[int] = field(default_factory=list)
    condemned: list[Condemned] = field(default_factory=list)
    now: float = 0.0
    alive: set[int] = field(default_factory=set)
    most_held: int = 0

    def run(self, rng: random.Random, accidents: float = 0.0, max_events: int = 20_000) -> None:
        for _ in range(max_events):
            self.now += 1.0
            if self.planner.finished:
                return
            for worker in self.planner.plan_starts(self.now):
                self.alive.add(worker)
                if rng.random() >= accidents:
                    self.planner.worker_ready(worker)
                else:
                    self.lose(worker, Loss.NOBODYS_FAULT)
            self.planner.plan_batches(self.now)
            self.most_held = max(self.most_held, self.planner.num_in_flight)
            busy = [worker for worker in sorted(self.alive) if self.planner.running(worker)]
            if busy:
                self.advance(rng.choice(busy), rng, accidents)
        raise AssertionError("the pool does not come to an end")

    def advance(self, worker: int, rng: random.Random, accidents: float) -> None:
        batch = self.planner.running(worker)
        items = set(values(batch))
        if rng.random() < accidents:
            self.lose(worker, Loss.NOBODYS_FAULT)
        elif items & self.kills:
            self.lose(worker, Loss.DIED)
        elif items & self.monitor_kills:
            self.lose(worker, Loss.OUT_OF_MEMORY)
        elif items & self.hangs:
            self.now += 1e6
            assert worker in self.planner.plan_kills(self.now)
            self.lose(worker, Loss.TIMED_OUT)
        elif items & self.too_large:
            self.condemned += self.planner.batch_too_large(worker, batch, "no memory", self.now)
        elif items & self.raises:
            self.condemned += self.planner.batch_failed(worker, batch, "oops", self.now)
        else:
            self.planner.batch_done(worker, batch, self.now)
            self.done += values(batch)

    def lose(self, worker: int, loss: Loss) -> None:
        self.alive.remove(worker)
        self.condemned += self.planner.worker_lost(worker, loss, "gone", self.now)


few = st.frozensets(st.integers(0, 59), max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    num_items=st.integers(0, 60),
    num_workers=st.integers(1, 5),
    batch_size=st.integers(1, 8),
    kills=few,
    hangs=few,
    too_large=few,
    raises=few,
    monitor_kills=few,
    accidents=st.sampled_from([0.0, 0.02]),
    seed=st.integers(0, 2**32),
)
def test_every_item_ends_exactly_once(  # noqa: PLR0917
    num_items, num_workers, batch_size, kills, hangs, too_large, raises, monitor_kills, accidents, seed
):
    bounds = limits(num_workers=num_workers, batch_size=batch_size)
    world = World(BatchPlanner(iter(range(num_items)), bounds), kills, hangs, too_large, raises, monitor_kills)
    world.run(random.Random(seed), accidents)

    bad = kills | hangs | too_large | raises | monitor_kills
    condemned = [each.ticket.item for each in world.condemned]
    assert Counter(world.done + condemned) == Counter(range(num_items))
    assert set(condemned) == {item for item in range(num_items) if item in bad}
    assert world.most_held <= num_workers * 2 * batch_size


@settings(max_examples=60, deadline=None)
@given(num_items=st.integers(1, 60), stop_after=st.integers(0, 40), kills=few, seed=st.integers(0, 2**32))
def test_a_stopped_pool_ends_with_what_runs(num_items, stop_after, kills, seed):
    rng = random.Random(seed)
    world = World(BatchPlanner(range(num_items), limits(batch_size=2)), kills=kills)
    with contextlib.suppress(AssertionError):
        world.run(rng, max_events=stop_after)
    world.planner.stop()
    running = [batch for worker in world.alive if (batch := world.planner.running(worker))]
    already = len(world.condemned)
    world.run(rng)
    ended = Counter(world.done + [each.ticket.item for each in world.condemned])
    assert max(ended.values(), default=1) == 1
    assert len(world.condemned) == already  # what dies now dies of the stop
    assert world.planner.finished
    assert sum(len(batch.tickets) for batch in running) <= 4
    assert not world.planner.plan_starts(world.now)


def test_intake_is_read_in_bounded_steps():
    read = 0

    def items():
        nonlocal read
        while True:
            read += 1
            yield read

    planner = BatchPlanner(items(), limits())
    workers = start_all(planner)
    assignments = planner.plan_batches(0.0)
    assert len(workers) == 2
    assert len(assignments) == 4
    assert read <= 32
    planner.batch_done(workers[0], planner.running(workers[0]), 1.0)
    planner.plan_batches(1.0)
    assert read <= 36


def test_the_waiting_batch_is_not_blamed():
    planner = BatchPlanner(range(100), limits(num_workers=1))
    (worker,) = start_all(planner)
    first, second = [assignment.batch for assignment in planner.plan_batches(0.0)]
    assert planner.worker_lost(worker, Loss.DIED, "gone", 1.0) == []
    assert [ticket.deaths for ticket in first.tickets] == [1] * 4
    assert [ticket.deaths for ticket in second.tickets] == [0] * 4
    assert [ticket.attempts for ticket in second.tickets] == [0] * 4


def test_a_suspect_has_its_worker_to_itself():
    planner = BatchPlanner(range(100), limits(num_workers=1))
    (worker,) = start_all(planner)
    first, second = [assignment.batch for assignment in planner.plan_batches(0.0)]
    planner.worker_lost(worker, Loss.DIED, "gone", 1.0)
    start_all(planner, 1.0)
    for suspect in values(first):
        worker, batch = only_batch(planner, 2.0)
        assert values(batch) == [suspect]
        assert batch.exclusive
        planner.batch_done(worker, batch, 3.0)
    _, batch = only_batch(planner, 4.0) if planner.limits.max_queued == 1 else (0, planner.plan_batches(4.0)[0].batch)
    assert values(batch) == values(second)


def test_busy_workers_become_idle_for_suspects():
    planner = BatchPlanner(range(1000), limits(num_workers=2))
    first, second = start_all(planner)
    planner.plan_batches(0.0)
    planner.worker_lost(first, Loss.DIED, "gone", 1.0)
    for _ in range(2):  # no new batch goes behind those that the second worker holds
        planner.batch_done(second, planner.running(second), 2.0)
        plans = planner.plan_batches(2.0)
        if plans:
            break
    assert [plan.batch.exclusive for plan in plans] == [True]


def test_death_alone_twice_condemns():
    planner = BatchPlanner([1], limits(batch_size=1))
    (worker,) = start_all(planner)
    only_batch(planner)
    assert planner.worker_lost(worker, Loss.DIED, "gone", 1.0) == []
    (worker,) = start_all(planner, 1.0)
    only_batch(planner, 1.0)
    (condemned,) = planner.worker_lost(worker, Loss.DIED, "gone", 2.0)
    assert (condemned.ticket.item, condemned.code, condemned.message) == (1, ErrorCode.WORKER_DIED, "gone")
    assert condemned.ticket.attempts == 2
    assert planner.finished


def test_lost_nodes_blame_nobody_until_they_follow_an_item():
    planner = BatchPlanner([1], limits(batch_size=1))
    now, condemned, losses = 0.0, [], 0
    while not planner.finished:
        now += 100.0
        for worker in start_all(planner, now):
            only_batch(planner, now)
            losses += 1
            condemned += planner.worker_lost(worker, Loss.NOBODYS_FAULT, "node gone", now)
    assert losses == limits().max_losses + 2
    assert [each.code for each in condemned] == [ErrorCode.WORKER_DIED]


def test_out_of_memory_halves_and_recovers():
    planner = BatchPlanner(range(10_000), limits(num_workers=1, batch_size=8, max_queued=1))
    (worker,) = start_all(planner)
    _, batch = only_batch(planner)
    assert planner.batch_too_large(worker, batch, "no memory", 0.0) == []
    sizes = []
    for _ in range(40):
        _, batch = only_batch(planner)
        sizes.append(len(batch.tickets))
        planner.batch_done(worker, batch, 0.0)
    assert sizes[:16] == [4] * 16
    assert sizes[-1] == 8


def test_out_of_memory_alone_condemns():
    planner = BatchPlanner([1], limits())
    (worker,) = start_all(planner)
    _, batch = only_batch(planner)
    (condemned,) = planner.batch_too_large(worker, batch, "no memory", 0.0)
    assert condemned.code is ErrorCode.OUT_OF_MEMORY


def test_a_timed_out_batch_is_tried_item_by_item():
    planner = BatchPlanner(range(3), limits(num_workers=1))
    (worker,) = start_all(planner)
    only_batch(planner)
    assert planner.plan_kills(29.0) == []
    assert planner.plan_kills(31.0) == [worker]
    assert planner.worker_lost(worker, Loss.TIMED_OUT, "late", 31.0) == []
    (worker,) = start_all(planner, 31.0)
    only_batch(planner, 40.0)
    assert planner.plan_kills(49.0) == []
    assert planner.plan_kills(51.0) == [worker]
    (condemned,) = planner.worker_lost(worker, Loss.TIMED_OUT, "late", 51.0)
    assert condemned.code is ErrorCode.TIMED_OUT


def test_the_clock_of_a_waiting_batch_starts_when_it_runs():
    planner = BatchPlanner(range(100), limits(num_workers=1, batch_size=1))
    (worker,) = start_all(planner)
    planner.plan_batches(0.0)
    planner.batch_done(worker, planner.running(worker), 9.0)
    assert planner.plan_kills(18.0) == []
    assert planner.plan_kills(19.5) == [worker]


def test_a_worker_that_refuses_to_start_fails_the_run():
    planner = BatchPlanner(range(4), limits())
    (worker, _) = planner.plan_starts(0.0)
    with pytest.raises(PoolFailed, match="no model there"):
        planner.worker_refused(worker, "no model there", 0.0)


def test_starting_is_given_up_after_a_few_tries_with_growing_pauses():
    planner = BatchPlanner(range(4), limits(num_workers=1))
    tries: list[float] = []

    def start_until(end: float) -> None:
        for now in np.arange(0.0, end, 0.25):
            for worker in planner.plan_starts(now):
                tries.append(now)
                planner.worker_lost(worker, Loss.DIED, "segmentation fault", now)

    with pytest.raises(PoolFailed, match="segmentation"):
        start_until(100.0)
    assert tries == [0.0, 0.5, 1.5]


def test_a_start_that_never_ends_fails_the_run():
    planner = BatchPlanner(range(4), limits(num_workers=1))
    (worker,) = planner.plan_starts(0.0)
    assert planner.plan_kills(59.0) == []
    assert planner.plan_kills(61.0) == [worker]
    with pytest.raises(PoolFailed, match="too long"):
        planner.worker_lost(worker, Loss.TIMED_OUT, "too long", 61.0)


def test_one_bad_node_does_not_end_a_run_that_works():
    planner = BatchPlanner(range(1000), limits(num_workers=2))
    good, _ = planner.plan_starts(0.0)
    planner.worker_ready(good)
    now, bad = 0.0, 2
    for _ in range(20):
        planner.worker_lost(bad, Loss.DIED, "bad node", now)
        assert planner.plan_starts(now) == []
        now += 31.0
        (bad,) = planner.plan_starts(now)


def test_a_pool_whose_workers_only_die_gives_up():
    planner = BatchPlanner(range(10_000), limits())
    world = World(planner, kills=frozenset(range(10_000)))
    with pytest.raises(PoolFailed, match="in a row"):
        world.run(random.Random(0))
    assert len(world.condemned) < 20


def test_the_last_items_are_spread_over_the_workers():
    planner = BatchPlanner(range(10), limits(num_workers=4, batch_size=8))
    start_all(planner)
    assert [len(plan.batch.tickets) for plan in planner.plan_batches(0.0)] == [3, 3, 3, 1]


def test_no_more_workers_than_work():
    assert len(BatchPlanner(range(3), limits(num_workers=64, batch_size=1)).plan_starts(0.0)) == 3
    planner = BatchPlanner([], limits())
    assert planner.plan_starts(0.0) == []
    assert planner.finished
