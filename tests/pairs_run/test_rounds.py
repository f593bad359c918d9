"""Rounds that make up for refused candidates, simulated: which candidates are good is drawn beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.pairs.rounds import SourceState, count_next, count_per_shard, divide_missing
from tasks.pairs.sampling import divide, take_balanced

MAX_ROUNDS = 60


def simulate(num_candidates: np.ndarray, is_good: np.ndarray, wanted: int, per_shard: int) -> tuple[list[int], int]:
    """Pairs built after each round, and candidates taken. is_good: (group, rank) bool."""
    state = SourceState(wanted, int(num_candidates.sum()))
    built = []
    while (number := count_next({"coco": state}, per_shard)["coco"]) and len(built) < MAX_ROUNDS:
        size = count_per_shard({"coco": number}, {"coco": state}, per_shard)
        start, stop = (take_balanced(num_candidates, n) for n in (state.taken, state.taken + number))
        pieces = divide(start, stop, size)
        in_shards = np.bincount(pieces.shard, weights=pieces.stop - pieces.start).astype(np.int64)
        limits = divide_missing(state.missing, in_shards)
        assert limits.sum() <= state.missing
        good = [is_good[g, a:b].sum() for g, a, b in zip(pieces.group, pieces.start, pieces.stop, strict=True)]
        found = np.minimum(np.bincount(pieces.shard, weights=good).astype(np.int64), limits)
        state = SourceState(wanted, state.candidates, state.taken + number, state.built + int(found.sum()))
        built.append(state.built)
    return built, state.taken


@pytest.mark.parametrize(
    ("share", "wanted", "num_rounds"),
    [(0.6, 100_000, 12), (0.1, 20_000, 16), (0.01, 1_000, 12), (0.01, 100, 8), (1.0, 100_000, 1), (0.95, 3, 2)],
)
def test_as_many_pairs_are_built_as_are_wanted_where_the_data_have_them(share, wanted, num_rounds):
    rng = np.random.default_rng(5)
    num_candidates = rng.integers(1, 7, 71_500)  # about 250,000 in all
    is_good = rng.random((len(num_candidates), 6)) < share
    built, taken = simulate(num_candidates, is_good, wanted, 256)
    assert built[-1] == wanted
    assert len(built) <= num_rounds
    assert taken <= num_candidates.sum()


@pytest.mark.parametrize("wanted", [10, 257, 5_000])
def test_a_folder_without_pictures_is_not_gone_through_a_few_at_a_time(wanted):
    num_candidates = np.full(62_500, 4)
    built, taken = simulate(num_candidates, np.zeros((62_500, 4), bool), wanted, 256)
    assert (built[-1], taken) == (0, 250_000)
    assert len(built) <= 30


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.floats(0, 1), st.integers(1, 200), st.integers(1, 20))
def test_never_too_many_and_nothing_is_left_untried_that_is_missing(seed, num_groups, share, wanted, per_shard):
    rng = np.random.default_rng(seed)
    num_candidates = rng.integers(0, 9, num_groups)
    # Whole groups are good or bad, as where a picture is missing.
    is_good = np.repeat(rng.random((num_groups, 1)) < share, 8, axis=1)
    built, taken = simulate(num_candidates, is_good, wanted, per_shard)
    assert all(number <= wanted for number in built)
    if num_candidates.sum():
        assert built[-1] == wanted or taken == num_candidates.sum()
