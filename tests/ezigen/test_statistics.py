import itertools

import numpy as np
import pytest

from ezigen.metrics import mean_interval, paired_difference


def subjects(num_clusters, size):
    return [f"subject {number}" for number in range(num_clusters) for _ in range(size)]


def test_the_interval_is_the_bootstrap_of_all_draws():
    """Of three clusters all 27 draws can be counted out."""
    values, clusters = np.array([1.0, 2.0, 10.0, 4.0, 4.0, 7.0]), ["a", "a", "b", "c", "c", "c"]
    groups = [values[:2], values[2:3], values[3:]]
    means = sorted(np.concatenate(drawn).mean() for drawn in itertools.product(groups, repeat=3))
    found = mean_interval(values, clusters)
    assert found.mean == pytest.approx(values.mean())
    assert (found.count, found.clusters) == (6, 3)
    # The extreme draws (1/27 each) hold more than 2.5 % each, so they are the ends.
    assert found.low == pytest.approx(means[0])
    assert found.high == pytest.approx(means[-1])


def test_it_holds_the_truth_about_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for trial in range(200):
        levels = rng.normal(0.5, 0.1, 30)
        values = np.repeat(levels, 5) + rng.normal(0, 0.05, 150)
        held += not mean_interval(values, subjects(30, 5), seed=trial).excludes(0.5)
    assert 0.88 < held / 200 < 0.99


def test_it_shrinks_with_more_subjects_and_not_with_more_images_of_the_same():
    rng = np.random.default_rng(1)
    widths = {}
    for num_clusters, size in ((10, 4), (40, 4), (160, 4), (10, 64)):
        values = np.repeat(rng.normal(0, 1, num_clusters), size) + rng.normal(0, 0.1, num_clusters * size)
        found = mean_interval(values, subjects(num_clusters, size))
        widths[num_clusters, size] = found.high - found.low
    assert widths[10, 4] > 1.5 * widths[40, 4] > 2 * widths[160, 4]
    assert widths[10, 64] > 1.5 * widths[40, 4]


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(2)
    shared = np.repeat(rng.normal(0, 1, 12), 4)
    worse, better = shared + rng.normal(0, 0.01, 48), shared + 0.05 + rng.normal(0, 0.01, 48)
    clusters = subjects(12, 4)
    difference = paired_difference(better, worse, clusters)
    assert difference.low > 0
    assert difference.mean == pytest.approx(0.05, abs=0.01)
    apart = mean_interval(better, clusters)
    assert not apart.excludes(mean_interval(worse, clusters).mean)


def test_equal_methods_do_not_differ():
    values = np.random.default_rng(3).normal(0, 1, 40)
    found = paired_difference(values, values, subjects(10, 4))
    assert (found.mean, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("values", "said", "direction"),
    [
        ([0.25] * 4, "+0.250 [+0.250, +0.250]", "higher"),
        ([-0.25] * 4, "-0.250 [-0.250, -0.250]", "lower"),
        ([0.0] * 4, "+0.000 [+0.000, +0.000]", "undecided"),
    ],
)
def test_a_difference_says_its_sign(values, said, direction):
    found = mean_interval(values, ["a", "a", "b", "b"])
    assert (found.signed(), found.direction) == (said, direction)
    assert (mean_interval(values, ["a"] * 4).direction) == "undecided"


def test_of_one_subject_nothing_is_said_about_others():
    found = mean_interval([0.5, 0.6], ["a", "a"])
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert str(found) == "0.550 (one subject)"


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([], [], "0 values"),
        ([1.0], ["a", "b"], "one cluster for each value"),
        ([1.0, np.nan], ["a", "b"], "not finite"),
    ],
)
def test_what_has_no_mean_is_refused(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, clusters)


def test_unequal_numbers_cannot_be_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference([1.0, 2.0], [1.0], ["a", "b"])
