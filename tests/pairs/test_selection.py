from itertools import combinations, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezigen.config import CocoSelection, VideoSelection
from ezigen.pairs import (
    check_frames,
    check_object,
    check_subject_mask,
    check_target_mask,
    count_frame_pairs,
    distinct_frames,
    draw_frames,
    min_distance,
    rank_objects,
)

COCO, VIDEO = CocoSelection(), VideoSelection()


@pytest.mark.parametrize(
    ("area_px", "is_crowd", "reason"),
    [(1000.0, False, None), (999.99, False, "area_too_small"), (5000.0, True, "crowd"), (10.0, True, "crowd")],
)
def test_check_object_at_its_bounds(area_px, is_crowd, reason):
    assert check_object(area_px, is_crowd, COCO) == reason


@pytest.mark.parametrize(
    ("areas_px", "crowd", "ranked"),
    [
        ([], [], []),
        ([999], [], []),
        ([1000, 3000, 2000, 4000], [], [3, 1, 2, 0]),
        ([5, 1000, 3000, 2000, 4000, 7], [], [4, 2, 3, 1]),  # the small ones are not counted
        ([1000, 3000, 2000, 4000, 5000], [], [4, 3, 1]),  # five: the larger half
        ([1000, 3000, 2000, 4000, 5000, 6000], [], [5, 4, 3]),
        ([1000, 3000, 2000, 4000, 5000, 6000], [5, 4], [3, 1, 2, 0]),
        ([2000] * 7, [], [0, 1, 2, 3]),
        ([2000 + i for i in range(20)], [], [19, 18, 17, 16]),
    ],
)
def test_the_larger_half_and_at_most_four_are_ranked_largest_first(areas_px, crowd, ranked):
    assert rank_objects(areas_px, [i in crowd for i in range(len(areas_px))], COCO) == ranked


@given(st.lists(st.floats(0, 1e6), max_size=30), st.integers(1, 8))
def test_ranked_objects_are_the_largest_that_qualify(areas_px, max_objects):
    selection = CocoSelection(max_objects=max_objects)
    ranked = rank_objects(areas_px, [False] * len(areas_px), selection)
    fit = sorted((area for area in areas_px if area >= 1000), reverse=True)
    assert [areas_px[i] for i in ranked] == fit[: len(ranked)]
    assert len(ranked) == len(fit) if len(fit) <= max_objects else len(ranked) == min((len(fit) + 1) // 2, max_objects)


def _pairs(num_frames):
    distance = max(1, num_frames // 8)
    return {(a, b) for a, b in combinations(range(num_frames), 2) if b - a >= distance}


@pytest.mark.parametrize("num_frames", [*range(60), 180])
def test_frame_pairs_are_those_at_least_an_eighth_apart(num_frames):
    expected = _pairs(num_frames)
    assert min_distance(num_frames, VIDEO) == max(1, num_frames // 8)
    assert count_frame_pairs(num_frames, VIDEO) == len(expected)
    drawn = list(distinct_frames(np.random.default_rng(num_frames), num_frames, VIDEO))
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == expected


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_any_share_of_distance_leaves_a_pair(share):
    selection = VideoSelection(min_distance_share=share)
    for num_frames in range(2, 40):
        drawn = list(distinct_frames(np.random.default_rng(0), num_frames, selection))
        assert drawn
        assert all(b - a >= max(1, num_frames * share - 1) for a, b in drawn)
        assert len(drawn) == count_frame_pairs(num_frames, selection)


def test_frames_are_drawn_uniformly_start_first():
    rng, num_frames = np.random.default_rng(3), 24
    drawn = np.array([draw_frames(rng, num_frames, VIDEO) for _ in range(20_000)])
    starts = np.bincount(drawn[:, 0], minlength=num_frames)
    assert starts[21:].sum() == 0
    assert np.abs(starts[:21] - 20_000 / 21).max() < 5 * np.sqrt(20_000 / 21)
    others = np.bincount(drawn[drawn[:, 0] == 10, 1], minlength=num_frames)
    assert others[:13].sum() == 0
    assert np.abs(others[13:] - others.sum() / 11).max() < 5 * np.sqrt(others.sum() / 11)


def test_distinct_frames_begin_as_drawing_does():
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    drawn = dict.fromkeys(draw_frames(rng, 30, VIDEO) for _ in range(200))
    assert list(islice(distinct_frames(again, 30, VIDEO), 50)) == list(islice(drawn, 50))


def test_the_end_of_a_sequence_prefers_what_drawing_would_prefer():
    """Late starts have few other frames, so each of their pairs is likely; in the second half they come first too."""
    places = {}
    for seed in range(400):
        rest = list(distinct_frames(np.random.default_rng(seed), 9, VIDEO))[18:]
        for place, pair in enumerate(rest):
            places.setdefault(pair, []).append(place)
    # (4, x) is drawn at a fifth of the rate of ... (7, 8), and (0, x) at an eighth.
    early = np.mean([p for (start, _), found in places.items() if start >= 4 for p in found])
    late = np.mean([p for (start, _), found in places.items() if start <= 1 for p in found])
    assert early < late - 2


def _mask(*boxes, height=100, width=100):
    mask = np.zeros((height, width), bool)
    for y, x, h, w in boxes:
        mask[y : y + h, x : x + w] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "as_subject", "as_target"),
    [
        (_mask(), "mask_empty", "mask_empty"),
        (_mask((0, 0, 10, 10)), None, None),  # exactly 1 %, exactly a tenth of a side
        (_mask((0, 0, 9, 11)), "mask_too_small", "mask_too_small"),
        (_mask((10, 10, 80, 80)), None, None),  # exactly 64 %, exactly four fifths of a side
        (_mask((10, 10, 80, 80), (9, 10, 1, 1)), "mask_too_large", "mask_too_large"),
        (_mask((0, 0, 9, 50)), "subject_box_too_small", None),
        (_mask((0, 0, 50, 9)), "subject_box_too_small", None),
        (_mask((0, 0, 81, 20)), None, "target_box_too_large"),
        (_mask((0, 0, 20, 81)), None, "target_box_too_large"),
        (_mask((0, 0, 10, 90), (50, 0, 10, 10)), None, "target_box_too_large"),  # exactly 90 % in one piece
        (_mask((0, 0, 10, 70), (50, 0, 10, 8)), "disconnected", None),
        (_mask((0, 0, 10, 70), (10, 70, 10, 8)), None, None),  # touches at a corner
        (_mask((0, 0, 36, 128), height=72, width=256), None, None),  # shares of each side of its own
        (_mask((0, 0, 58, 30), height=72, width=256), None, "target_box_too_large"),
    ],
)
def test_masks_at_the_bounds_of_each_predicate(mask, as_subject, as_target):
    good = _mask((20, 20, 30, 30))
    assert check_subject_mask(mask, VIDEO) == as_subject
    assert check_target_mask(mask, VIDEO) == as_target
    assert check_frames(mask, good, VIDEO) == as_subject
    assert check_frames(good, mask, VIDEO) == as_target


def test_the_bounds_are_those_of_the_configuration():
    mask = _mask((0, 0, 9, 90))
    assert check_subject_mask(mask, VideoSelection(min_subject_box_share=0.09)) is None
    assert check_target_mask(mask, VideoSelection(max_target_box_share=0.9)) is None
    assert check_subject_mask(mask, VideoSelection(max_mask_share=0.08)) == "mask_too_large"
    assert check_subject_mask(mask, VideoSelection(min_mask_share=0.09)) == "mask_too_small"
    parts = _mask((0, 0, 10, 70), (50, 0, 10, 8))
    assert check_subject_mask(parts, VideoSelection(min_connected_share=0.89)) is None
