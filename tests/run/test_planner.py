"""The pool's decisions, without Ray: every item ends exactly once, and only the guilty are condemned."""

import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezigen.config import ErrorCode
from tasks.cluster.planner import Assignment, Condemned, ItemPlanner, Loss, PoolFailed, PoolLimits, Ticket


def limits(**changes) -> PoolLimits:
    values = {"num_workers": 2, "num_slots": 2, "num_ahead": 2, "item_timeout_s": 10.0, "start_timeout_s": 60.0}
    return PoolLimits(**{**values, **changes})


def start_all(planner: ItemPlanner, now: float = 0.0) -> list[int]:
    workers = planner.plan_starts(now)
    for worker in workers:
        planner.worker_ready(worker)
    return workers


def assign(planner: ItemPlanner, now: float = 0.0) -> dict[int, list[Ticket]]:
    """What each worker is given now."""
    given = defaultdict(list)
    for assignment in planner.plan_assignments(now):
        given[assignment.worker].append(assignment.ticket)
    return given


def only(planner: ItemPlanner, now: float = 0.0) -> Assignment:
    (assignment,) = planner.plan_assignments(now)
    return assignment


def items_of(tickets) -> list:
    return [ticket.item for ticket in tickets]


def finish(planner: ItemPlanner, worker: int, num_items: int, now: float = 0.0) -> list:
    """A worker's oldest items come back with their results."""
    tickets = planner.held(worker)[:num_items]
    for ticket in tickets:
        planner.item_done(worker, ticket, now)
    return items_of(tickets)


# ---- a world of workers


@dataclass
class World:
    """Workers that obey a list of deeds; time passes with every event. Answers to withdrawals come when they like."""

    planner: ItemPlanner
    deeds: dict[int, str] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    accidents: float = 0.0
    done: list[int] = field(default_factory=list)
    condemned: list[Condemned] = field(default_factory=list)
    now: float = 0.0
    begun: dict[int, list[Ticket]] = field(default_factory=dict)
    ahead: dict[int, list[Ticket]] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    on_their_way: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    most_held: int = 0
    giving_back: dict[Ticket, int] = field(default_factory=dict)

    def run(self, max_events: int = 50_000) -> None:
        for _ in range(max_events):
            self.now += 1.0
            if self.planner.finished:
                return
            self.start()
            self.send()
            self.ask_back()
            self.check()
            self.retire()
            self.happen()
        raise AssertionError("the pool does not come to an end")

    def start(self) -> None:
        for worker in self.planner.plan_starts(self.now):
            self.begun[worker], self.ahead[worker], self.slots[worker] = [], [], self.planner.num_slots
            if self.rng.random() >= self.accidents:
                self.planner.worker_ready(worker)
            else:
                self.lose(worker, Loss.NOBODYS_FAULT)

    def send(self) -> None:
        for assignment in self.planner.plan_assignments(self.now):
            if assignment.exclusive:
                assert self.planner.held(assignment.worker) == (assignment.ticket,)
            self.ahead[assignment.worker].append(assignment.ticket)
        for worker in self.begun:
            self.fill(worker)

    def fill(self, worker: int) -> None:
        while self.ahead[worker] and len(self.begun[worker]) < self.slots[worker]:
            self.begun[worker].append(self.ahead[worker].pop(0))

    def ask_back(self) -> None:
        for worker, num_asked in self.planner.plan_withdrawals():
            assert worker not in self.giving_back.values()
            assert 0 < num_asked <= len(self.planner.held(worker)) - self.slots[worker]
            num_given = min(num_asked, self.rng.randint(0, len(self.ahead[worker])))
            given = [self.ahead[worker].pop() for _ in range(num_given)]
            self.answer_later(worker, self.planner.withdrawal_done, worker, num_asked, num_given)
            for ticket in given:
                self.answer_later(worker, self.take_back, worker, ticket)
                self.giving_back[ticket] = worker
            self.rng.shuffle(self.on_their_way)

    def take_back(self, worker: int, ticket: Ticket) -> None:
        del self.giving_back[ticket]
        self.planner.item_withdrawn(worker, ticket)

    def answer_later(self, worker: int, tell: Callable[..., None], *values) -> None:
        self.on_their_way.append((worker, lambda: tell(*values)))

    def check(self) -> None:
        held = [ticket for worker in self.begun for ticket in self.planner.held(worker)]
        assert self.planner.num_in_flight == len(held) == len(set(held))
        self.most_held = max(self.most_held, len(held))

    def happen(self) -> None:
        busy = [worker for worker in sorted(self.begun) if self.begun[worker]]
        if self.on_their_way and (not busy or self.rng.random() < 0.3):
            _, tell = self.on_their_way.pop()
            tell()
        elif busy:
            self.advance(self.rng.choice(busy))

    def advance(self, worker: int) -> None:
        ticket = self.rng.choice(self.begun[worker])
        deed = self.deeds.get(ticket.item, "")
        if self.rng.random() < self.accidents:
            self.lose(worker, Loss.NOBODYS_FAULT)
        elif deed == "kill":
            self.lose(worker, Loss.DIED)
        elif deed == "monitor":
            self.lose(worker, Loss.OUT_OF_MEMORY)
        elif deed == "hang":
            self.now += 1e6
            assert worker in self.planner.plan_kills(self.now)
            self.lose(worker, Loss.TIMED_OUT)
        else:
            self.answer(worker, ticket, deed)

    def answer(self, worker: int, ticket: Ticket, deed: str) -> None:
        self.begun[worker].remove(ticket)
        if deed == "raise":
            self.condemned += self.planner.item_failed(worker, ticket, "oops", self.now)
        else:
            self.planner.item_done(worker, ticket, self.now)
            self.done.append(ticket.item)
        self.fill(worker)

    def retire(self) -> None:
        for worker in self.planner.plan_retirements(self.now):
            assert not self.begun[worker] + self.ahead[worker]
            assert not self.planner.num_waiting
            del self.begun[worker], self.ahead[worker], self.slots[worker]
            self.planner.worker_retired(worker)
            assert not self.planner.plan_starts(self.now)

    def lose(self, worker: int, loss: Loss) -> None:
        del self.begun[worker], self.ahead[worker], self.slots[worker]
        self.giving_back = {ticket: number for ticket, number in self.giving_back.items() if number != worker}
        self.on_their_way = [(number, tell) for number, tell in self.on_their_way if number != worker]
        self.condemned += self.planner.worker_lost(worker, loss, "gone", self.now)

    def ended(self) -> Counter:
        return Counter(self.done + [each.ticket.item for each in self.condemned])


def test_a_worker_for_which_nothing_is_left_gives_its_place_back():
    planner = ItemPlanner(range(3), limits(num_slots=2, num_ahead=0, retire_after_s=5.0))
    first, second = start_all(planner)
    given = assign(planner)
    assert sorted(map(len, given.values())) == [1, 2]
    idle, busy = (first, second) if len(given[first]) == 1 else (second, first)
    finish(planner, idle, 1, now=100.0)
    assert planner.plan_retirements(104.0) == []
    assert planner.plan_retirements(106.0) == [idle]
    planner.worker_retired(idle)
    assert planner.plan_starts(106.0) == []
    # Its mate dies: what that held needs a worker again.
    planner.worker_lost(busy, Loss.DIED, "gone", 107.0)
    assert len(planner.plan_starts(107.0)) == 2


def test_nobody_is_sent_away_while_items_wait_or_may_come():
    def endless():
        yield from range(4)
        raise AssertionError("read too far")

    planner = ItemPlanner(endless(), limits(num_slots=1, num_ahead=0, read_ahead=1, retire_after_s=0.0))
    start_all(planner)
    assign(planner)
    assert planner.plan_retirements(1e6) == []


# Fewer bad items than deaths in a row that a pool of one worker bears.
bad_items = st.dictionaries(st.integers(0, 79), st.sampled_from(["kill", "monitor", "hang", "raise"]), max_size=7)
CODES = {
    "kill": ErrorCode.WORKER_DIED,
    "monitor": ErrorCode.OUT_OF_MEMORY,
    "hang": ErrorCode.TIMED_OUT,
    "raise": ErrorCode.GENERATION_FAILED,
}


@settings(max_examples=200, deadline=None)
@given(
    num_items=st.integers(0, 80),
    num_workers=st.integers(1, 5),
    num_slots=st.integers(1, 6),
    num_ahead=st.integers(0, 6),
    read_ahead=st.sampled_from([1, 7, 1024]),
    group_size=st.sampled_from([None, 1, 4, 100]),
    deeds=bad_items,
    accidents=st.sampled_from([0.0, 0.02]),
    seed=st.integers(0, 2**32),
)
def test_every_item_ends_exactly_once(  # noqa: PLR0917
    num_items, num_workers, num_slots, num_ahead, read_ahead, group_size, deeds, accidents, seed
):
    bounds = limits(num_workers=num_workers, num_slots=num_slots, num_ahead=num_ahead, read_ahead=read_ahead)
    affinity = (lambda item: item // group_size if item % 9 else None) if group_size else None
    world = World(ItemPlanner(iter(range(num_items)), bounds, affinity), deeds, random.Random(seed), accidents)
    world.run()

    assert world.ended() == Counter(range(num_items))
    guilty = {item: CODES[deed] for item, deed in deeds.items() if item < num_items}
    if accidents:
        assert {each.ticket.item for each in world.condemned} >= guilty.keys()
        assert all(each.code is guilty.get(each.ticket.item, ErrorCode.WORKER_DIED) for each in world.condemned)
    else:
        assert {each.ticket.item: each.code for each in world.condemned} == guilty
    assert world.most_held <= num_workers * (num_slots + num_ahead)


@settings(max_examples=60, deadline=None)
@given(num_items=st.integers(1, 60), stop_after=st.integers(0, 40), deeds=bad_items, seed=st.integers(0, 2**32))
def test_a_stopped_pool_ends_with_what_is_held(num_items, stop_after, deeds, seed):
    deeds = {item: deed for item, deed in deeds.items() if deed in {"kill", "monitor"}}
    world = World(ItemPlanner(range(num_items), limits()), deeds, random.Random(seed))
    with contextlib.suppress(AssertionError):
        world.run(max_events=stop_after)
    world.planner.stop()
    held = {ticket.item for worker in world.begun for ticket in world.planner.held(worker)}
    already, condemned = set(world.ended()), len(world.condemned)
    world.run()
    assert max(world.ended().values(), default=1) == 1
    assert set(world.ended()) - already <= held
    assert len(world.condemned) == condemned  # what dies now dies of the stop
    assert world.planner.finished
    assert not world.planner.plan_starts(world.now)


# ---- intake and affinity


def test_intake_is_read_in_bounded_steps():
    read = 0

    def items():
        nonlocal read
        while True:
            read += 1
            yield read

    planner = ItemPlanner(items(), limits(read_ahead=10))
    first, _ = start_all(planner)
    assert sum(map(len, assign(planner).values())) == 8
    assert read <= 18
    finish(planner, first, 1)
    assign(planner)
    assert read <= 19


def test_the_least_full_worker_is_served_first():
    planner = ItemPlanner(range(100), limits())
    first, second = start_all(planner)
    assert [each.worker for each in planner.plan_assignments(0.0)] == [first, second] * 4
    finish(planner, first, 1)
    finish(planner, second, 3)
    assert [each.worker for each in planner.plan_assignments(0.0)] == [second, second, first, second]


def test_items_that_share_work_meet_on_one_worker():
    planner = ItemPlanner(range(1000), limits(num_slots=4, num_ahead=4), affinity=lambda item: item // 8)
    first, second = start_all(planner)
    given = assign(planner)
    assert items_of(given[first]) == list(range(8))
    assert items_of(given[second]) == list(range(8, 16))
    finish(planner, second, 8)
    assert items_of(assign(planner)[second]) == list(range(16, 24))


def test_items_that_share_work_are_found_among_those_read_ahead():
    scattered = [item for step in range(4) for item in range(step, 400, 4)]
    planner = ItemPlanner(scattered, limits(num_slots=4, num_ahead=0), affinity=lambda item: item // 4)
    given = assign_all(planner)
    assert all(len({item // 4 for item in items}) == 1 for items in given.values())


def assign_all(planner: ItemPlanner) -> dict[int, list]:
    start_all(planner)
    return {worker: items_of(tickets) for worker, tickets in assign(planner).items()}


def test_when_every_group_is_taken_the_largest_is_shared():
    sizes = {"small": 3, "large": 50, "medium": 10}
    items = [name for name, size in sizes.items() for _ in range(size)]
    bounds = limits(num_workers=4, num_slots=3, num_ahead=0)
    given = assign_all(ItemPlanner(items, bounds, affinity=lambda item: item))
    assert sorted(map(tuple, given.values())) == sorted(
        [("small",) * 3, ("large",) * 3, ("medium",) * 3, ("large",) * 3]
    )


def test_items_without_a_key_share_with_nobody():
    items = ["a", None, "a", None, "a", None]
    given = assign_all(ItemPlanner(items, limits(num_slots=3, num_ahead=0), affinity=lambda item: item))
    assert sorted(given.values(), key=str) == [["a"] * 3, [None] * 3]


def test_the_rest_of_a_lost_workers_group_is_drawn_next():
    planner = ItemPlanner(range(1000), limits(num_slots=4, num_ahead=0), affinity=lambda item: item // 8)
    first, second = start_all(planner)
    assign(planner)
    planner.worker_lost(first, Loss.NOBODYS_FAULT, "node gone", 1.0)
    finish(planner, second, 4)
    finish(planner, second, len(assign(planner, 1.0)[second]))
    assert items_of(assign(planner, 1.0)[second]) == [0, 1, 2, 3]


def test_the_rest_of_the_group_of_a_worker_with_a_suspect_is_drawn_by_others():
    planner = ItemPlanner(range(1000), limits(num_slots=4, num_ahead=0), affinity=lambda item: item // 8)
    first, second = start_all(planner)
    suspect = assign(planner)[second][0]
    planner.item_failed(second, suspect, "oops", 0.0)
    finish(planner, first, 4)
    assert assign(planner)[first] == [suspect]
    finish(planner, second, 4)
    assert items_of(assign(planner)[second]) == [13, 14, 15, 4]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_endless_group_starves_nobody(num_workers):
    """Of two rare items in an endless stream of one key, both are sent before twice the read-ahead has passed."""
    rare = {3: "rare", 40: None}
    items = (rare.get(index, "endless") for index in count())
    bounds = limits(num_workers=num_workers, read_ahead=64)
    planner = ItemPlanner(items, bounds, affinity=lambda item: item)
    workers = start_all(planner)
    sent = []
    while len(sent) < 2 * 64 * num_workers:
        sent += [ticket.item for tickets in assign(planner).values() for ticket in tickets]
        for worker in workers:
            finish(planner, worker, 1)
    assert "rare" in sent
    assert None in sent


# ---- the tail


def test_the_last_items_are_spread_over_the_workers():
    planner = ItemPlanner(range(10), limits(num_workers=4, num_slots=8, num_ahead=8))
    start_all(planner)
    assert sorted(len(tickets) for tickets in assign(planner).values()) == [2, 2, 3, 3]


def test_the_last_items_wait_for_workers_that_are_loading():
    planner = ItemPlanner(range(10), limits(num_workers=4, num_slots=8, num_ahead=8))
    first, *others = planner.plan_starts(0.0)
    planner.worker_ready(first)
    assert len(assign(planner)[first]) == 3
    for other in others:
        planner.worker_lost(other, Loss.NOBODYS_FAULT, "gone", 1.0)
    assert len(assign(planner, 1.0)[first]) == 7


def test_what_is_held_ahead_is_taken_back_for_free_slots():
    planner = ItemPlanner(range(8), limits())
    first, second = start_all(planner)
    tickets = assign(planner)[first]
    assert planner.plan_withdrawals() == []  # nobody has a free slot
    finish(planner, second, 3)
    assert planner.plan_withdrawals() == [(first, 1)]
    assert planner.plan_withdrawals() == []  # one is pending
    planner.withdrawal_done(first, 1, 1)
    assert planner.plan_withdrawals() == []  # and not yet back
    planner.item_withdrawn(first, tickets[-1])
    assert tickets[-1].attempts == 0
    assert assign(planner)[second] == [tickets[-1]]
    assert tickets[-1].attempts == 1


def test_a_worker_that_has_begun_everything_is_asked_again_after_its_next_result():
    planner = ItemPlanner(range(8), limits())
    first, second = start_all(planner)
    assign(planner)
    finish(planner, second, 4)
    assert planner.plan_withdrawals() == [(first, 2)]
    planner.withdrawal_done(first, 2, 0)
    assert planner.plan_withdrawals() == []
    finish(planner, first, 1)
    assert planner.plan_withdrawals() == [(first, 1)]


def test_no_more_is_taken_back_than_can_be_given_away():
    """A part of what is left is for the worker that is loading; it stays where it is until then."""
    planner = ItemPlanner(range(16), limits(num_workers=3, num_slots=4, num_ahead=4))
    first, second, third = planner.plan_starts(0.0)
    planner.worker_lost(third, Loss.NOBODYS_FAULT, "gone", 0.0)
    planner.worker_ready(first)
    planner.worker_ready(second)
    assert [len(tickets) for tickets in assign(planner).values()] == [8, 8]
    assert len(planner.plan_starts(10.0)) == 1
    finish(planner, second, 8)
    assert planner.plan_withdrawals() == [(first, 3)]


def test_nothing_is_taken_back_while_items_wait():
    planner = ItemPlanner(range(100), limits())
    _, second = start_all(planner)
    assign(planner)
    finish(planner, second, 4)
    assert planner.plan_withdrawals() == []


def test_stopping_takes_back_what_is_held_ahead():
    planner = ItemPlanner(range(100), limits())
    first, second = start_all(planner)
    tickets = assign(planner)
    planner.stop()
    assert planner.plan_withdrawals() == [(first, 2), (second, 2)]
    for worker in (first, second):
        planner.withdrawal_done(worker, 2, 2)
        for ticket in tickets[worker][2:]:
            planner.item_withdrawn(worker, ticket)
        finish(planner, worker, 2)
    assert planner.plan_assignments(1.0) == []
    assert planner.finished


def test_what_a_slow_worker_holds_ahead_is_done_by_the_others():
    planner = ItemPlanner(range(64), limits(num_workers=4, num_slots=4, num_ahead=12))
    slow, *fast = start_all(planner)
    assign(planner)
    for _ in range(16):
        for worker in fast:
            finish(planner, worker, 1)
        for worker, num_asked in planner.plan_withdrawals():
            given = planner.held(worker)[-num_asked:]
            planner.withdrawal_done(worker, num_asked, len(given))
            for ticket in given:
                planner.item_withdrawn(worker, ticket)
        assign(planner)
    assert [len(planner.held(worker)) for worker in (slow, *fast)] == [4, 4, 4, 4]


def test_no_more_workers_than_work():
    assert len(ItemPlanner(range(3), limits(num_workers=64)).plan_starts(0.0)) == 3
    planner = ItemPlanner([], limits())
    assert planner.plan_starts(0.0) == []
    assert planner.finished


def test_no_worker_is_started_for_items_that_others_have_in_their_slots():
    planner = ItemPlanner(range(4), limits())
    first, second = start_all(planner)
    assign(planner)
    finish(planner, second, 2)
    planner.worker_lost(second, Loss.NOBODYS_FAULT, "gone", 1.0)
    assert len(planner.held(first)) == 2
    assert planner.plan_starts(2.0) == []


# ---- blame


def test_everything_that_a_dead_worker_held_is_suspected():
    planner = ItemPlanner(range(100), limits(num_workers=1))
    (worker,) = start_all(planner)
    tickets = assign(planner)[worker]
    planner.item_done(worker, tickets[0], 1.0)
    assert planner.worker_lost(worker, Loss.DIED, "gone", 1.0) == []
    assert [ticket.deaths for ticket in tickets] == [0, 1, 1, 1]
    start_all(planner, 1.0)
    assert only(planner, 2.0).ticket is tickets[1]


def test_a_suspect_has_its_worker_to_itself():
    planner = ItemPlanner(range(100), limits(num_workers=1))
    (worker,) = start_all(planner)
    suspects = assign(planner)[worker]
    planner.worker_lost(worker, Loss.DIED, "gone", 1.0)
    start_all(planner, 1.0)
    for suspect in suspects:
        assignment = only(planner, 2.0)
        assert (assignment.ticket, assignment.exclusive) == (suspect, True)
        assert planner.plan_assignments(2.0) == []
        planner.item_done(assignment.worker, suspect, 3.0)
    assert [(each.ticket.item, each.exclusive) for each in planner.plan_assignments(4.0)] == [
        (item, False) for item in range(4, 8)
    ]


def test_busy_workers_become_idle_for_suspects():
    planner = ItemPlanner(range(1000), limits(num_workers=2))
    first, second = start_all(planner)
    assign(planner)
    planner.worker_lost(first, Loss.DIED, "gone", 1.0)
    for _ in range(4):
        assert planner.plan_assignments(2.0) == []
        finish(planner, second, 1, 2.0)
    assert only(planner, 2.0).exclusive


def test_a_few_workers_at_most_wait_for_suspects():
    planner = ItemPlanner(range(100_000), limits(num_workers=9, num_slots=16, num_ahead=16))
    first, *others = start_all(planner)
    assign(planner)
    planner.worker_lost(first, Loss.DIED, "gone", 1.0)
    for worker in others:
        finish(planner, worker, 8, 2.0)
    given = assign(planner, 2.0)
    assert sorted(len(given[worker]) for worker in others) == [0, 0, 8, 8, 8, 8, 8, 8]


def test_death_alone_twice_condemns():
    planner = ItemPlanner([1], limits())
    (worker,) = start_all(planner)
    only(planner)
    assert planner.worker_lost(worker, Loss.DIED, "gone", 1.0) == []
    (worker,) = start_all(planner, 1.0)
    assert only(planner, 1.0).exclusive
    (condemned,) = planner.worker_lost(worker, Loss.DIED, "gone", 2.0)
    assert (condemned.ticket.item, condemned.code, condemned.message) == (1, ErrorCode.WORKER_DIED, "gone")
    assert condemned.ticket.attempts == 2
    assert planner.finished


def test_a_whole_worker_full_of_poison_does_not_end_the_run():
    bounds = limits(num_workers=1, num_slots=16, num_ahead=16)
    world = World(ItemPlanner(range(100), bounds), deeds=dict.fromkeys(range(40), "kill"))
    world.run()
    assert sorted(each.ticket.item for each in world.condemned) == list(range(40))
    assert sorted(world.done) == list(range(40, 100))


def test_lost_nodes_blame_nobody_until_they_follow_an_item():
    planner = ItemPlanner([1], limits())
    now, condemned, losses = 0.0, [], 0
    while not planner.finished:
        now += 100.0
        for worker in start_all(planner, now):
            only(planner, now)
            losses += 1
            condemned += planner.worker_lost(worker, Loss.NOBODYS_FAULT, "node gone", now)
    assert losses == limits().max_losses + 2
    assert [each.code for each in condemned] == [ErrorCode.WORKER_DIED]


def test_a_suspect_whose_node_is_lost_stays_a_suspect():
    planner = ItemPlanner([1], limits())
    (worker,) = start_all(planner)
    planner.item_failed(worker, only(planner).ticket, "oops", 1.0)
    only(planner)
    planner.worker_lost(worker, Loss.NOBODYS_FAULT, "node gone", 1.0)
    start_all(planner, 2.0)
    assert only(planner, 2.0).exclusive


def test_what_a_lost_node_held_comes_first_and_in_order():
    planner = ItemPlanner(range(100), limits(num_workers=1))
    (worker,) = start_all(planner)
    assign(planner)
    planner.worker_lost(worker, Loss.NOBODYS_FAULT, "node gone", 1.0)
    (worker,) = start_all(planner, 1.0)
    assert items_of(assign(planner, 1.0)[worker]) == [0, 1, 2, 3]


def test_an_item_that_raises_is_tried_once_more_alone():
    planner = ItemPlanner(range(3), limits(num_workers=1))
    (worker,) = start_all(planner)
    ticket, *others = assign(planner)[worker]
    assert planner.item_failed(worker, ticket, "oops", 1.0) == []
    assert planner.plan_assignments(1.0) == []  # the others are still there
    finish(planner, worker, 2)
    assert only(planner, 1.0).ticket is ticket
    (condemned,) = planner.item_failed(worker, ticket, "oops", 2.0)
    assert (condemned.code, condemned.message) == (ErrorCode.GENERATION_FAILED, "oops")
    assert [other.deaths for other in others] == [0, 0]


def test_out_of_memory_halves_the_slots_of_later_workers():
    planner = ItemPlanner(range(10_000), limits(num_workers=3, num_slots=5, num_ahead=3))
    first, second, third = start_all(planner)
    assign(planner)
    planner.worker_lost(first, Loss.OUT_OF_MEMORY, "killed", 1.0)
    planner.worker_lost(second, Loss.OUT_OF_MEMORY, "killed", 1.0)  # of the same size, at the same time
    assert planner.num_slots == 2
    now, sizes = 100.0, []
    while len(sizes) < 2:
        start_all(planner, now)
        given = assign(planner, now)
        sizes += [len(tickets) for worker, tickets in given.items() if worker > third and len(tickets) > 1]
        for worker in given:
            finish(planner, worker, 1, now)
        finish(planner, third, 1, now)
    assert sizes == [2 + 3, 2 + 3]


def test_out_of_memory_alone_condemns_and_halves_nothing():
    planner = ItemPlanner([1], limits())
    for _ in range(2):
        (worker,) = start_all(planner, 100.0)
        only(planner)
        condemned = planner.worker_lost(worker, Loss.OUT_OF_MEMORY, "killed", 0.0)
    assert [each.code for each in condemned] == [ErrorCode.OUT_OF_MEMORY]
    assert planner.num_slots == 2


# ---- time


def test_the_items_of_a_silent_worker_are_tried_one_by_one():
    planner = ItemPlanner(range(3), limits(num_workers=1))
    (worker,) = start_all(planner)
    assert len(assign(planner)[worker]) == 3
    assert planner.plan_kills(19.0) == []
    assert planner.plan_kills(21.0) == [worker]  # two slots, ten seconds each
    assert planner.worker_lost(worker, Loss.TIMED_OUT, "late", 21.0) == []
    (worker,) = start_all(planner, 21.0)
    only(planner, 30.0)
    assert planner.plan_kills(39.0) == []
    assert planner.plan_kills(41.0) == [worker]
    (condemned,) = planner.worker_lost(worker, Loss.TIMED_OUT, "late", 41.0)
    assert condemned.code is ErrorCode.TIMED_OUT


def test_every_answer_starts_the_clock_again():
    planner = ItemPlanner(range(100), limits(num_workers=1, num_slots=1, num_ahead=3))
    (worker,) = start_all(planner)
    tickets = assign(planner)[worker]
    planner.item_done(worker, tickets[0], 9.0)
    assert planner.plan_kills(18.0) == []
    assert planner.plan_kills(19.5) == [worker]
    planner.item_failed(worker, tickets[1], "oops", 18.0)
    assert planner.plan_kills(27.0) == []
    planner.item_withdrawn(worker, tickets[2])  # shows that the process lives, not that its work goes on
    assert planner.plan_kills(28.5) == [worker]


def test_the_clock_of_an_idle_worker_starts_with_its_next_item():
    planner = ItemPlanner(iter([1]), limits(num_workers=1))
    (worker,) = start_all(planner)
    assert planner.plan_kills(1000.0) == []
    only(planner, 1000.0)
    assert planner.plan_kills(1009.0) == []
    assert planner.plan_kills(1011.0) == [worker]


# ---- starting


def test_a_worker_that_refuses_to_start_fails_the_run():
    planner = ItemPlanner(range(4), limits())
    worker, _ = planner.plan_starts(0.0)
    with pytest.raises(PoolFailed, match="no model there"):
        planner.worker_refused(worker, "no model there", 0.0)


def test_starting_is_given_up_after_a_few_tries_with_growing_pauses():
    planner = ItemPlanner(range(4), limits(num_workers=1))
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
    planner = ItemPlanner(range(4), limits(num_workers=1))
    (worker,) = planner.plan_starts(0.0)
    assert planner.plan_kills(59.0) == []
    assert planner.plan_kills(61.0) == [worker]
    with pytest.raises(PoolFailed, match="too long"):
        planner.worker_lost(worker, Loss.TIMED_OUT, "too long", 61.0)


def test_one_bad_node_does_not_end_a_run_that_works():
    planner = ItemPlanner(range(1000), limits(num_workers=2))
    good, _ = planner.plan_starts(0.0)
    planner.worker_ready(good)
    now, bad = 0.0, 2
    for _ in range(20):
        planner.worker_lost(bad, Loss.DIED, "bad node", now)
        assert planner.plan_starts(now) == []
        now += 31.0
        (bad,) = planner.plan_starts(now)


def test_a_pool_whose_workers_only_die_gives_up():
    world = World(ItemPlanner(range(10_000), limits()), deeds=dict.fromkeys(range(10_000), "kill"))
    with pytest.raises(PoolFailed, match="in a row"):
        world.run()
    assert len(world.condemned) < 24
