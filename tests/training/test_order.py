"""The order of samples: every sample once per epoch, exact shares, the same for any number of workers."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezigen.config import ConfigurationError
from ezigen.training.order import SampleOrder, batch_share, choose, hash_fractions, permutation, rank_share

SEEDS = st.integers(0, 2**63 - 1)
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=3)
WEIGHTS = st.floats(0.1, 10)


@given(SEEDS, SIZES, st.data())
@settings(deadline=None)
def test_every_sample_of_a_source_comes_once_in_each_of_its_epochs(seed, sizes, data):
    weights = data.draw(st.lists(WEIGHTS, min_size=len(sizes), max_size=len(sizes)))
    order = SampleOrder(seed, sizes, weights)
    taken: dict[int, list[int]] = {source: [] for source in range(len(sizes))}
    position = 0
    while any(len(taken[source]) < 2 * size for source, size in enumerate(sizes)):
        source, sample = order.place(position)
        taken[source].append(sample)
        position += 1
    for source, size in enumerate(sizes):
        for start in range(0, len(taken[source]) - size + 1, size):
            assert sorted(taken[source][start : start + size]) == list(range(size))


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(0, 10**14))
@settings(deadline=None)
def test_shares_are_exact_wherever_one_looks(first, second, start):
    """Of any first n positions a source has its share to within a half, so of any stretch to within one."""
    order = SampleOrder(0, [7, 7], [first, second])
    share = Fraction(first) / (Fraction(first) + Fraction(second))
    for position in range(start, start + 20):
        source, index = order.stream(position)
        before = index if source == 0 else position - index
        assert abs(before - position * share) <= Fraction(1, 2)


@given(st.lists(WEIGHTS, min_size=3, max_size=3))
@settings(deadline=None)
def test_three_sources_have_their_shares(weights):
    order = SampleOrder(0, [5, 5, 5], weights)
    counts = Counter(order.stream(position)[0] for position in range(300))
    for source, weight in enumerate(weights):
        assert abs(counts[source] - 300 * weight / sum(weights)) <= 1


@given(st.lists(WEIGHTS, min_size=1, max_size=3))
@settings(deadline=None)
def test_a_stream_counts_its_own_positions(weights):
    order, seen = SampleOrder(0, [5] * len(weights), weights), Counter()
    for position in range(100):
        source, index = order.stream(position)
        assert index == seen[source]
        seen[source] += 1


def test_equal_weights_alternate():
    order = SampleOrder(0, [5, 5], [1.0, 1.0])
    assert [order.stream(position)[0] for position in range(6)] == [0, 1, 0, 1, 0, 1]


def test_a_source_without_weight_never_comes():
    for weights in ([0.0, 2.0], [2.0, 0.0]):
        order = SampleOrder(3, [4, 4], weights)
        assert {order.place(position)[0] for position in range(40)} == {weights.index(2.0)}
    assert SampleOrder(3, [4, 0], [1.0, 0.0]).place(0)[0] == 0


def test_sizes_and_weights_must_allow_an_order():
    with pytest.raises(ValueError, match=r"source 1 has weight 1\.0 but no samples"):
        SampleOrder(0, [3, 0], [1.0, 1.0])
    with pytest.raises(ValueError, match="no source has a weight"):
        SampleOrder(0, [3, 3], [0.0, 0.0])


def test_permutations_do_not_depend_on_versions():
    """Another order would make resumed runs differ from undisturbed ones without any sign."""
    assert permutation(0, 0, 0, 10).tolist() == [0, 5, 2, 6, 1, 3, 9, 7, 8, 4]
    assert permutation(2**63 - 1, 3, 1, 10).tolist() == [5, 8, 6, 0, 7, 3, 1, 9, 4, 2]


def test_permutations_differ_by_seed_epoch_and_source():
    orders = {tuple(permutation(s, e, d, 50)) for s in range(3) for e in range(3) for d in range(2)}
    assert len(orders) == 18


def test_permutations_are_uniform():
    """All 24 orders of four samples, 2,400 epochs: chi-squared with 23 degrees of freedom is above 50 once in 1,000."""
    counts = Counter(tuple(permutation(0, epoch, 0, 4)) for epoch in range(2400))
    assert len(counts) == 24
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 50


def test_an_order_handed_out_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        permutation(0, 0, 0, 10)[0] = 5


@given(st.integers(1, 40), st.data(), st.integers(0, 1000))
@settings(deadline=None)
def test_ranks_share_a_batch_without_gaps(batch_size, data, step):
    num_ranks = data.draw(st.integers(1, batch_size))
    shares = [batch_share(step, batch_size, rank, num_ranks) for rank in range(num_ranks)]
    together = [position for share in shares for position in share]
    assert together == list(range(step * batch_size, (step + 1) * batch_size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_ranks_than_samples_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"5 workers .* batch of 4.*batch_size at least 5.*num_workers at most 4"
    ):
        batch_share(0, 4, 0, 5)


def test_a_few_numbers_are_shared_among_many_ranks():
    assert [len(rank_share(range(10, 13), rank, 5)) for rank in range(5)] == [1, 1, 1, 0, 0]


@given(SEEDS, st.integers(0, 10**9), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None)
def test_chosen_candidates_are_distinct_and_in_order(seed, position, num_candidates, num_wanted):
    chosen = choose(seed, position, num_candidates, num_wanted).tolist()
    assert len(chosen) == min(num_candidates, num_wanted)
    assert chosen == sorted(set(chosen) & set(range(num_candidates)))


def test_every_candidate_is_chosen_equally_often():
    """3,000 draws of 2 out of 6: each candidate 1,000 times, standard deviation 26."""
    counts = Counter(int(one) for position in range(3000) for one in choose(0, position, 6, 2))
    assert all(abs(counts[candidate] - 1000) < 4 * 26 for candidate in range(6))


def test_hashes_are_fractions_of_each_text_alone():
    texts = [f"coco/train2014/{number}" for number in range(2000)]
    fractions = hash_fractions(7, texts)
    assert fractions.min() >= 0
    assert fractions.max() < 1
    # Kolmogorov-Smirnov: the distance exceeds 1.95 / sqrt(n) once in 1,000.
    assert np.abs(np.sort(fractions) - np.arange(2000) / 2000).max() < 1.95 / 2000**0.5
    assert (hash_fractions(7, texts[5:9]) == fractions[5:9]).all()
    assert (hash_fractions(8, texts) != fractions).all()
