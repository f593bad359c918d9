"""The step planner, without networks: no job is lost, served twice, starved, or in a slot that is not there."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezigen.engine import Kind, Lane, Leg, StepPlanner

SKETCH, TRANSFER, DECODE = Lane(Kind.SKETCH, guided=True), Lane(Kind.TRANSFER, guided=True), Lane(Kind.DECODE)
WIDE = Lane(Kind.TRANSFER, guided=True, shape=2)


def planner(num_slots=2, patience=200, **widths):
    return StepPlanner(lambda lane: widths.get(lane.kind.name, num_slots), patience)


def run_call(made):
    call = made.plan()
    return call, made.done(call)


def test_an_empty_planner_plans_nothing():
    assert planner().plan() is None


def test_a_job_keeps_its_slot_to_its_last_step_and_another_takes_it_at_the_next_call():
    made = planner()
    for job, steps in {"a": 1, "b": 3, "c": 1}.items():
        made.add(job, [Leg(TRANSFER, steps)])
    assert [(run_call(made)[0].slots, len(made)) for _ in range(3)] == [
        (("a", "b"), 2),
        (("c", "b"), 1),
        ((None, "b"), 0),
    ]


def test_who_enters_is_told_once():
    made = planner()
    made.add("a", [Leg(TRANSFER, 2)])
    assert run_call(made)[0].entering == (0,)
    made.add("b", [Leg(TRANSFER, 1)])
    assert run_call(made)[0].entering == (1,)


def test_a_job_goes_through_its_lanes_one_after_the_other():
    made = planner()
    made.add("a", [Leg(SKETCH, 2), Leg(TRANSFER, 1), Leg(DECODE)])
    calls = [run_call(made) for _ in range(4)]
    assert [call.lane for call, _ in calls] == [SKETCH, SKETCH, TRANSFER, DECODE]
    assert [ended for _, ended in calls] == [[], [], [], ["a"]]


def test_a_lane_that_can_be_filled_goes_before_one_that_cannot():
    made = planner()
    made.add("a", [Leg(TRANSFER, 5)])
    for job in "bc":
        made.add(job, [Leg(SKETCH, 1), Leg(TRANSFER, 5)])
    assert run_call(made)[0].slots == ("b", "c")
    assert run_call(made)[0].lane == TRANSFER


def test_of_full_lanes_the_one_nearest_to_the_image_goes_first():
    made = planner()
    for number, lane in enumerate([SKETCH, SKETCH, TRANSFER, TRANSFER, DECODE, DECODE]):
        made.add(number, [Leg(lane)])
    assert [run_call(made)[0].lane for _ in range(3)] == [DECODE, TRANSFER, SKETCH]


def test_without_a_full_lane_those_go_first_that_feed_the_transfer():
    made = planner(num_slots=3)
    for job, lane in {"t": TRANSFER, "d": DECODE, "s": SKETCH, "e": Lane(Kind.ENCODE)}.items():
        made.add(job, [Leg(lane)])
    assert [run_call(made)[0].lane.kind for _ in range(4)] == [Kind.ENCODE, Kind.SKETCH, Kind.DECODE, Kind.TRANSFER]


def test_the_more_urgent_goes_first_then_the_older():
    made = planner(num_slots=1)
    for job, urgency in {"a": 0, "b": 2, "c": 2}.items():
        made.add(job, [Leg(TRANSFER)], urgency)
    assert [run_call(made)[1] for _ in range(3)] == [["b"], ["c"], ["a"]]


def test_a_removed_job_frees_its_slot_at_once():
    made = planner(num_slots=1)
    made.add("a", [Leg(TRANSFER, 9)])
    made.add("b", [Leg(TRANSFER, 1)])
    run_call(made)
    made.remove("a")
    assert run_call(made)[0].slots == ("b",)
    assert len(made) == 0


def test_a_job_that_is_removed_during_its_call_is_not_ended_by_it():
    made = planner()
    made.add("a", [Leg(TRANSFER)])
    made.add("b", [Leg(TRANSFER)])
    call = made.plan()
    made.remove("a")
    assert made.done(call) == ["b"]


def test_fewer_slots_send_those_without_one_to_the_head_of_the_line():
    widths = {"TRANSFER": 4}
    made = StepPlanner(lambda lane: widths[lane.kind.name])
    for job in "abcde":
        made.add(job, [Leg(TRANSFER, 2)])
    assert run_call(made)[0].slots == ("a", "b", "c", "d")
    widths["TRANSFER"] = 2
    assert made.resize() == ["a", "b", "c", "d"]
    calls = [run_call(made)[0] for _ in range(4)]
    assert [call.slots for call in calls] == [("a", "b"), ("c", "d"), ("e", None), ("e", None)]
    assert calls[0].entering == (0, 1)


def test_a_job_is_added_once_and_needs_steps():
    made = planner()
    made.add("a", [Leg(TRANSFER)])
    with pytest.raises(ValueError, match="already"):
        made.add("a", [Leg(TRANSFER)])
    with pytest.raises(ValueError, match="at least one"):
        made.add("b", [])
    with pytest.raises(ValueError, match="at least one"):
        made.add("b", [Leg(TRANSFER, 0)])


def test_a_lane_that_is_never_full_has_its_turn_while_others_are_fed_forever():
    made = planner(patience=10)
    made.add("rare", [Leg(WIDE, 2)])
    fed, served = 0, []
    for _ in range(60):
        while made.lanes.count(TRANSFER) == 0 or fed < 3 + len(served):
            made.add(fed, [Leg(TRANSFER)])
            fed += 1
        call, _ = run_call(made)
        served.append(call.lane)
    assert served.count(WIDE) == 2
    assert max(served.index(WIDE), 1) <= 12


LANES = [SKETCH, TRANSFER, WIDE, DECODE]
JOBS = st.lists(st.lists(st.tuples(st.sampled_from(LANES), st.integers(1, 4)), min_size=1, max_size=4), max_size=25)


@settings(max_examples=150, deadline=None)
@given(
    jobs=JOBS,
    num_slots=st.integers(1, 5),
    arrivals=st.lists(st.integers(0, 3), max_size=40),
    cancelled=st.sets(st.integers(0, 24), max_size=6),
    resized=st.dictionaries(st.integers(0, 40), st.integers(1, 5), max_size=3),
)
def test_every_job_makes_exactly_its_steps_whoever_else_comes_and_goes(  # noqa: C901 - one random history
    jobs, num_slots, arrivals, cancelled, resized
):
    """Jobs arrive at random calls, some are cancelled half-way, and the number of slots changes."""
    width = [num_slots]
    made = StepPlanner(lambda _lane: width[0], patience=7)
    waiting = list(enumerate(jobs))
    steps: Counter = Counter()
    ended, removed = [], set()
    slots: dict = {}
    for turn in range(2000):
        for _ in range(arrivals[turn] if turn < len(arrivals) else 25):
            if waiting:
                job, legs = waiting.pop(0)
                made.add(job, [Leg(lane, count) for lane, count in legs])
        if turn in resized:
            width[0] = resized[turn]
            made.resize()
            slots = {}
        call = made.plan()
        if call is None:
            if not waiting:
                break
            continue
        assert len(call.slots) == width[0]
        assert len(set(call.jobs)) == len(call.jobs) > 0
        for slot, job in enumerate(call.slots):
            if job is None:
                continue
            steps[job, call.lane] += 1
            if slot in call.entering:
                slots[job, call.lane] = slot
            assert slots[job, call.lane] == slot  # whoever is in a slot was told to enter it
        victim = next((job for job in cancelled if job in made), None) if turn % 5 == 4 else None
        if victim is not None:
            made.remove(victim)
            removed.add(victim)
        done = made.done(call)
        ended += done
        assert not removed & set(done)
    assert made.plan() is None
    assert sorted([*ended, *removed]) == list(range(len(jobs)))
    for job in ended:
        wanted: Counter = Counter()
        for lane, count in jobs[job]:
            wanted[lane] += count
        assert {lane: steps[job, lane] for lane in wanted} == dict(wanted)
