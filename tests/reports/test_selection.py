"""What a page shows of more than it can hold depends on the rows alone."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.catalog.results import to_batch
from tasks.reports.selection import PageLimits, PictureBudget, Selection, last_similarity, rank_values
from tests.reports.rows import make_row, make_rows

LIMITS = PageLimits(max_pictures=40, max_items=120, max_failures_per_code=3)


def choose(rows, limits=LIMITS, batch_size=17):
    selection = Selection(limits)
    for start in range(0, len(rows), batch_size):
        selection.add(to_batch(rows[start : start + batch_size]))
    return selection.choose()


@pytest.fixture(scope="module")
def rows():
    return list(make_rows(400, num_failed=24))


def test_the_choice_depends_neither_on_order_nor_on_division(rows):
    shuffled = random.Random(5).sample(rows, len(rows))
    assert choose(rows) == choose(shuffled, batch_size=400) == choose(shuffled, batch_size=5)


def test_everything_is_shown_when_it_fits(rows):
    choice = choose(rows, PageLimits())
    assert choice.listed == {row.item_key for row in rows}
    assert set(choice.pictured) == {row.item_key for row in rows if row.status == "done"}


def test_limits_hold_and_extremes_are_shown(rows):
    choice = choose(rows)
    done = sorted((row for row in rows if row.status == "done"), key=lambda row: row.scores["dino"])
    failed = Counter(row.error_code for row in rows if row.item_key in choice.listed and row.error_code)
    assert len(choice.pictured) == 40
    assert sorted(choice.pictured.values()) == list(range(40))
    assert len(choice.listed) == 120 + sum(failed.values())
    assert set(failed.values()) == {3}
    for extreme in (*done[:5], *done[-5:]):
        assert extreme.item_key in choice.pictured


def test_failures_are_listed_in_the_catalogs_order(rows):
    choice = choose(rows)
    of_code = [row for row in rows if row.error_code == "image_missing"]
    assert [row.item_key in choice.listed for row in of_code] == [True] * 3 + [False] * (len(of_code) - 3)


def test_items_without_a_preview_are_listed_only():
    rows = [make_row(0), make_row(1, paint=None)]
    choice = choose(rows)
    assert choice.listed == {row.item_key for row in rows}
    assert list(choice.pictured) == [rows[0].item_key]


def test_nothing_is_chosen_of_nothing():
    assert choose([]).listed == frozenset()


def test_rank_is_the_score_and_else_the_last_similarity():
    rows = [make_row(i, paint=None) for i in range(4)]
    changes = [
        {"scores": {"dino": 0.5, "clip_t": 0.1}},
        {"scores": {}},
        {"scores": {}, "similarities": ()},
        {"scores": {"clip_t": 0.3}},
    ]
    batch = to_batch([type(row)(**{**vars(row), **change}) for row, change in zip(rows, changes, strict=True)])
    ranks = rank_values(batch).to_pylist()
    assert ranks == [0.5, pytest.approx(rows[1].similarities[-1]), None, 0.3]
    assert last_similarity(batch).to_pylist()[2] is None
    assert rank_values(batch.slice(1, 2)).to_pylist() == ranks[1:3]


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=30), st.integers(0, 120), st.randoms())
def test_the_picture_budget_keeps_the_longest_beginning_that_fits(sizes, max_bytes, chance):
    budget = PictureBudget(max_bytes)
    arrivals = list(enumerate(sizes))
    chance.shuffle(arrivals)
    for priority, size in arrivals:
        budget.offer(priority, str(priority), "x" * size)
    expected = []
    for priority, size in enumerate(sizes):
        if sum(sizes[:priority]) + size > max_bytes:
            break
        expected.append(str(priority))
    assert sorted(budget.kept(), key=int) == expected
