"""A store's budget while it is written: what finished shards weigh, against what they were planned to weigh."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.features.budget import BudgetReached, ByteBudget

GIB = 2**30


def names(number: int) -> list[str]:
    return [f"r0-{index:05d}" for index in range(number)]


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=30),
    st.floats(0.2, 5),
    st.floats(0.1, 1.5),
    st.integers(1, 6),
)
def test_a_run_ends_below_its_budget_or_is_complete(planned, scale, budget_share, num_workers):
    actual = [scale * size for size in planned]
    limit = sum(actual) * budget_share / GIB
    budget = ByteBudget(limit, dict(zip(names(len(planned)), planned, strict=True)))
    waiting = list(enumerate(actual))
    running: list[tuple[int, float]] = []
    first = True
    while (waiting or running) and (running or budget.has_place(1)):
        # The first shards are begun before anything is known of their weight.
        while waiting and len(running) < num_workers and (first or budget.has_place(num_workers)):
            running.append(waiting.pop(0))
        first = False
        if not running:
            break
        index, size = running.pop(0)
        budget.add(names(len(planned))[index], size)
    begun_blindly = scale * sum(sorted(planned, reverse=True)[:num_workers])
    if waiting:
        assert budget.stored_bytes <= max(limit * GIB, begun_blindly) + 1e-3
        assert budget.expected_bytes == pytest.approx(sum(actual), rel=1e-6, abs=1e-3) or budget.stored_bytes == 0
    elif budget_share >= 1 and scale <= 1:
        assert budget.stored_bytes == pytest.approx(sum(actual))


def test_a_store_that_fits_is_never_stopped():
    sizes = [100, 1, 50, 7, 100, 3]
    budget = ByteBudget(1.001 * 2 * sum(sizes) / GIB, dict(zip(names(6), sizes, strict=True)))
    for name, size in zip(names(6), sizes, strict=True):
        budget.add(name, 2 * size)
        assert budget.has_place(4)


def test_the_error_says_what_there_is_what_there_will_be_and_what_to_do():
    budget = ByteBudget(10, dict.fromkeys(names(10), 2 * GIB))
    for name in names(2):
        budget.add(name, 4 * GIB)
    assert not budget.has_place(1)
    error = budget.error()
    assert isinstance(error, BudgetReached)
    assert "holds 8.0 GiB in 2 of 10 shards" in str(error)
    assert "inputs.max_gib (10.0)" in str(error)
    assert "about 40.0 GiB" in str(error)
    assert "run again, it continues" in str(error)
    assert ByteBudget(0, dict.fromkeys(names(10), 2 * GIB)).has_place(10)
