import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_masks

from ezigen.mini.world.masks import to_polygons, to_rle
from ezigen.pairs import Box, Refusal, RefusalReason, bounding_box, connected_share, decode_segmentation

small_masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(small_masks)
def test_both_kinds_of_run_lengths_give_the_mask(mask):
    for compressed in (False, True):
        assert np.array_equal(decode_segmentation(to_rle(mask, compressed=compressed), *mask.shape), mask)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_long_runs_and_many_of_them_agree_with_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = np.repeat(np.repeat(rng.random((12, 9)) < 0.5, 37, axis=0), 53, axis=1)
    encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = encoded["counts"].decode()
    assert np.array_equal(decode_segmentation({"size": encoded["size"], "counts": text}, *mask.shape), mask)


def test_polygons_agree_with_pycocotools_and_with_what_they_outline():
    mask = np.zeros((40, 60), bool)
    mask[5:20, 10:50], mask[25:35, 0:8], mask[38:40, 55:60] = True, True, True
    polygons = to_polygons(mask)
    assert len(polygons) == 3
    assert np.array_equal(decode_segmentation(polygons, 40, 60), mask)
    crooked = [[10.3, 5.7, 50.2, 8.1, 31.9, 36.6], [1.0, 1.0, 9.5, 1.2, 4.4, 12.8]]
    theirs = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(crooked, 40, 60))).astype(bool)
    assert theirs.any()
    assert np.array_equal(decode_segmentation(crooked, 40, 60), theirs)


def test_a_polygon_may_overshoot_by_rounding_and_no_more():
    assert decode_segmentation([[-1.5, 0, 61.5, 0, 61.5, 41.9, -2.0, 42.0]], 40, 60).all()
    with pytest.raises(Refusal, match="63, 40 in a picture of 60 x 40 px") as refusal:
        decode_segmentation([[0, 0, 63, 0, 63, 40, 0, 40]], 40, 60)
    assert refusal.value.reason == RefusalReason.MASK_MISMATCH


def test_an_outline_that_would_fill_the_memory_is_refused():
    """pycocotools would take 5 * 4 bytes for each of 60 million pixels of it, several times over."""
    with pytest.raises(Refusal, match=r"its outline of .* is too long") as refusal:
        decode_segmentation([[0, 0, 1000, 600] * 30_000], 600, 1000)
    assert refusal.value.reason == RefusalReason.MASK_INVALID
    comb = [[n // 2, 600 * (n // 2 % 2)] for n in range(2000)]  # up and down, all over the picture
    assert decode_segmentation([[float(x) for point in comb for x in point]], 600, 1000).any()


RUNS = {"size": [4, 4], "counts": [3, 5, 8]}


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "mask_invalid"),
        ("polygon", "mask_invalid"),
        (7, "mask_invalid"),
        ([], "mask_invalid"),
        ([[]], "mask_invalid"),
        ([[0, 0, 3, 3]], "mask_invalid"),  # pycocotools would take it for a box
        ([[0, 0, 3, 3, 3]], "mask_invalid"),
        ([[0, 0, 3, "3", 3, 0, None, 1]], "mask_invalid"),
        ([[0, 0, 3, [3], 3, 0]], "mask_invalid"),
        ([{"counts": [16]}], "mask_invalid"),
        ([[0, 0, 3, 3, float("nan"), 0]], "mask_mismatch"),
        ([[0, 0, 3, 3, 1e300, 0]], "mask_mismatch"),
        ([[0, 0, 3, 3, 3, 0], [0, 0, 900, 3, 3, 0]], "mask_mismatch"),
        ({}, "mask_invalid"),
        ({"size": [4, 4]}, "mask_invalid"),
        ({"size": [4, 4], "counts": None}, "mask_invalid"),
        (RUNS | {"size": [4]}, "mask_invalid"),
        (RUNS | {"size": [4.0, 4.0]}, "mask_invalid"),
        (RUNS | {"size": [-4, -4]}, "mask_invalid"),
        (RUNS | {"size": [4, 5]}, "mask_mismatch"),
        (RUNS | {"size": [8, 2]}, "mask_mismatch"),
        (RUNS | {"counts": [3, 5, 7]}, "mask_invalid"),
        (RUNS | {"counts": [3, 5, 9]}, "mask_invalid"),
        (RUNS | {"counts": [20, -12, 8]}, "mask_invalid"),
        (RUNS | {"counts": [3, 5.0, 8]}, "mask_invalid"),
        (RUNS | {"counts": [2**70]}, "mask_invalid"),
        (RUNS | {"counts": []}, "mask_invalid"),
        (RUNS | {"counts": ""}, "mask_invalid"),
        (RUNS | {"counts": "35"}, "mask_invalid"),  # 8 of 16 pixels
        (RUNS | {"counts": "@P"}, "mask_invalid"),  # the number goes on, the text does not
        (RUNS | {"counts": "3\N{LATIN SMALL LETTER E WITH ACUTE}"}, "mask_invalid"),
        (RUNS | {"counts": "ooooooooooooooooo0"}, "mask_invalid"),
    ],
)
def test_what_is_no_segmentation_of_the_picture_is_refused(segmentation, reason):
    with pytest.raises(Refusal) as refusal:
        decode_segmentation(segmentation, 4, 4)
    assert refusal.value.reason == reason
    assert "segmentation" in refusal.value.message


@given(st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=12))
def test_any_text_of_run_lengths_is_refused_or_read_as_pycocotools_reads_it(text):
    try:
        mask = decode_segmentation({"size": [5, 7], "counts": text}, 5, 7)
    except Refusal:
        return
    assert np.array_equal(mask, coco_masks.decode({"size": [5, 7], "counts": text.encode()}).astype(bool))


@given(small_masks)
def test_bounding_box_is_the_smallest_one(mask):
    if not mask.any():
        with pytest.raises(Refusal) as refusal:
            bounding_box(mask)
        assert refusal.value.reason == RefusalReason.MASK_EMPTY
        return
    encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert bounding_box(mask).to_list() == coco_masks.toBbox(encoded).tolist()


def _largest_part(mask):
    left = {tuple(point) for point in np.argwhere(mask).tolist()}
    largest = 0
    while left:
        part, todo = 0, [left.pop()]
        while todo:
            y, x = todo.pop()
            part += 1
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        largest = max(largest, part)
    return largest


@given(small_masks)
def test_connected_share_is_that_of_a_flood_fill(mask):
    expected = _largest_part(mask) / mask.sum() if mask.any() else 0.0
    assert connected_share(mask) == expected


def test_a_box_is_seen_in_a_crop_in_its_pixels_and_cut_off_at_its_borders():
    crop = Box(100, 50, 200, 200)
    assert Box(150, 100, 50, 100).seen_in(crop, 512) == Box(128, 128, 128, 256)
    assert Box(0, 0, 200, 400).seen_in(crop, 100) == Box(0, 0, 50, 100)
    assert Box.from_list(crop.to_list()) == crop


def test_a_refusal_survives_the_way_between_processes():
    refusal = pickle.loads(pickle.dumps(Refusal(RefusalReason.CROWD, "several people")))
    assert (refusal.reason, refusal.message, str(refusal)) == (RefusalReason.CROWD, "several people", "several people")
