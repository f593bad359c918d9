"""Which candidates are taken, against a list of all of them that is sorted by brute force."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.pairs.sampling import divide, group_hash, take_balanced

candidates = st.lists(st.integers(0, 12), max_size=40).map(lambda values: np.array(values, np.int64))


def take_by_sorting(num_candidates: np.ndarray, wanted: int) -> list[int]:
    """Every candidate as (rank, place of its group), the first `wanted` of them, counted by group."""
    everything = sorted((rank, place) for place, number in enumerate(num_candidates) for rank in range(number))
    taken = [place for _, place in everything[:wanted]]
    return [taken.count(place) for place in range(len(num_candidates))]


@given(candidates, st.integers(0, 300))
def test_what_is_taken_is_the_beginning_of_the_sorted_list(num_candidates, wanted):
    assert take_balanced(num_candidates, wanted).tolist() == take_by_sorting(num_candidates, wanted)


@given(candidates, st.integers(0, 100), st.integers(0, 100), st.integers(1, 9))
def test_shards_hold_every_new_rank_once_and_are_about_full(num_candidates, first, more, per_shard):
    start, stop = take_balanced(num_candidates, first), take_balanced(num_candidates, first + more)
    pieces = divide(start, stop, per_shard)
    held = [
        (group, rank)
        for group, low, high in zip(pieces.group, pieces.start, pieces.stop, strict=True)
        for rank in range(low, high)
    ]
    assert held == [(g, r) for g, (low, high) in enumerate(zip(start, stop, strict=True)) for r in range(low, high)]
    assert pieces.shard.tolist() == sorted(pieces.shard.tolist())
    assert set(pieces.shard.tolist()) == set(range(pieces.num_shards))
    sizes = np.bincount(pieces.shard, weights=pieces.stop - pieces.start)
    assert (sizes < 2 * per_shard).all()
    assert pieces.num_shards <= -(-len(held) // per_shard)


def test_the_order_depends_on_the_seed_and_the_id_alone():
    assert group_hash(0, "coco/train2014/9") == 11922396442654678568
    assert group_hash(1, "coco/train2014/9") != group_hash(0, "coco/train2014/9")
    assert len({group_hash(0, f"coco/train2014/{number}") for number in range(10_000)}) == 10_000
    high = [group_hash(7, f"youtube_vis/{number}/1") >> 63 for number in range(10_000)]
    assert 0.47 < np.mean(high) < 0.53
