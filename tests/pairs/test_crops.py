import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ezigen.config import PairConfig, VideoSelection
from ezigen.pairs import (
    Box,
    Refusal,
    bounding_box,
    cut_target,
    make_coco_pair,
    make_video_pair,
    pair_rng,
    square_around,
)

RED, BLUE, WHITE = (200, 30, 30), (20, 40, 180), (255, 255, 255)
CONFIG = PairConfig(size_px=64)


def scene(width, height, x, y, w, h):
    """A red box on blue, and its mask."""
    picture = Image.new("RGB", (width, height), BLUE)
    picture.paste(RED, (x, y, x + w, y + h))
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    return picture, mask


@st.composite
def scenes(draw):
    width, height = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    w, h = draw(st.integers(1, width)), draw(st.integers(1, height))
    return width, height, draw(st.integers(0, width - w)), draw(st.integers(0, height - h)), w, h


def colours(image):
    """What there is of red, blue and white, in pixels."""
    pixels = np.asarray(image).reshape(-1, 3).astype(int)
    return [int((np.abs(pixels - colour).max(axis=1) < 25).sum()) for colour in (RED, BLUE, WHITE)]


def _config(**video):
    return PairConfig(size_px=64, youtube_vis=VideoSelection(**video))


def test_a_pairs_random_numbers_are_the_same_everywhere():
    """Numbers written down: another version, machine or order of pairs must give them again."""
    assert pair_rng(0, "coco/train/57870/787662").integers(0, 10**9, 3).tolist() == [520299294, 588287567, 65024291]
    assert pair_rng(1, "coco/train/57870/787662").integers(0, 10**9, 3).tolist() == [758006978, 951127499, 145257921]
    assert pair_rng(0, "youtube_vis/00a23ccf53/1/00005-00020").integers(0, 10**9, 3).tolist() == [
        669427100,
        850876537,
        816353045,
    ]


def test_a_coco_subject_is_the_object_on_white_padded_to_a_square():
    picture, mask = scene(100, 80, 30, 20, 40, 20)
    pair = make_coco_pair(picture, mask, CONFIG, pair_rng(0, "a"))
    assert pair.subject.size == pair.subject_mask.size == pair.target.size == pair.target_mask.size == (64, 64)
    assert (pair.subject.mode, pair.subject_mask.mode, pair.target.mode, pair.target_mask.mode) == (
        "RGB",
        "L",
        "RGB",
        "L",
    )
    assert pair.subject_box == Box(30, 20, 40, 20)
    assert not pair.flipped
    shown = np.asarray(pair.subject_mask)
    assert set(np.unique(shown)) == {0, 255}
    # 40 x 20 px in a square of 40: the full width, the middle half of the height.
    assert bounding_box(shown > 0) == Box(0, 16, 64, 32)
    red, blue, white = colours(pair.subject)
    assert blue == 0
    assert red >= 64 * 28
    assert white >= 64 * 28


def test_a_subject_has_nothing_of_what_surrounds_it_inside_its_box():
    picture, _ = scene(60, 60, 0, 0, 1, 1)
    mask = np.tri(60, dtype=bool)
    picture.paste(RED, mask=Image.fromarray(mask))
    subject = make_coco_pair(picture, mask, PairConfig(size_px=60), pair_rng(0, "a")).subject
    expected = np.where(mask[..., None], RED, WHITE)
    assert np.array_equal(np.asarray(subject), expected)


@given(scenes(), st.integers(0, 1000))
@settings(max_examples=60)
def test_a_coco_target_is_the_largest_square_with_as_much_of_the_subject_as_can_be(given_scene, seed):
    picture, mask = scene(*given_scene)
    width, height, x, y, w, h = given_scene
    pair = make_coco_pair(picture, mask, CONFIG, pair_rng(seed, "a"))
    crop, side = pair.target_crop, min(width, height)
    assert (crop.width, crop.height) == (side, side)
    assert 0 <= crop.x <= width - side
    assert 0 <= crop.y <= height - side
    seen_w = min(x + w, crop.x + side) - max(x, crop.x)
    seen_h = min(y + h, crop.y + side) - max(y, crop.y)
    assert (seen_w, seen_h) == (min(w, side), min(h, side))
    by_hand = picture.crop((crop.x, crop.y, crop.x + side, crop.y + side))
    by_hand = by_hand if side == 64 else by_hand.resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(pair.target), np.asarray(by_hand))
    assert np.array_equal(np.asarray(cut_target(picture, crop, 64)), np.asarray(pair.target))


def test_where_a_coco_target_lies_differs_from_pair_to_pair():
    picture, mask = scene(120, 60, 50, 20, 10, 10)
    offsets = {make_coco_pair(picture, mask, CONFIG, pair_rng(0, str(i))).target_crop.x for i in range(200)}
    assert (min(offsets), max(offsets)) == (0, 50)
    assert len(offsets) > 40


def test_squash_shows_the_whole_picture():
    picture, mask = scene(120, 60, 60, 0, 60, 60)
    config = PairConfig(size_px=64, coco_target_fit="squash")
    pair = make_coco_pair(picture, mask, config, pair_rng(0, "a"))
    assert pair.target_crop == Box(0, 0, 120, 60)
    assert pair.target_box == Box(32, 0, 32, 64)
    assert bounding_box(np.asarray(pair.target_mask) > 0) == pair.target_box
    assert np.array_equal(np.asarray(pair.target), np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS)))


def test_pad_shows_the_whole_picture_on_white():
    picture, mask = scene(120, 60, 60, 0, 60, 60)
    config = PairConfig(size_px=60, coco_target_fit="pad")
    pair = make_coco_pair(picture, mask, config, pair_rng(0, "a"))
    assert pair.target_crop == Box(0, -30, 120, 120)
    assert pair.target_box == Box(30, 15, 30, 30)
    pixels = np.asarray(pair.target)
    assert (pixels[:10] > 245).all()
    assert (pixels[-10:] > 245).all()
    assert colours(pair.target)[2] <= 60 * 30
    assert np.array_equal(np.asarray(cut_target(picture, pair.target_crop, 60)), pixels)


@given(scenes(), st.floats(1.0, 4.0))
def test_a_square_around_a_box_stays_inside_the_frame(given_scene, enlarge):
    width, height, x, y, w, h = given_scene
    square = square_around(Box(x, y, w, h), enlarge, (width, height))
    assert square.width == square.height == max(1, min(round(max(w, h) * enlarge), width, height))
    assert 0 <= square.x <= width - square.width
    assert 0 <= square.y <= height - square.height
    seen_w = min(x + w, square.x + square.width) - max(x, square.x)
    seen_h = min(y + h, square.y + square.height) - max(y, square.y)
    assert (seen_w, seen_h) == (min(w, square.width), min(h, square.height))


@given(scenes(), scenes(), st.integers(0, 1000))
@settings(max_examples=60)
def test_no_pad_colour_is_ever_in_a_video_target(of_subject, of_target, seed):
    subject, target = scene(*of_subject), scene(*of_target)
    pair = make_video_pair(*subject, *target, CONFIG, pair_rng(seed, "a"))
    # Resampling between red and blue goes beyond both, but never to where white or black are.
    pixels = np.asarray(pair.target).astype(int)
    assert (pixels[..., 1] < 80).all()
    assert (pixels[..., 0] + pixels[..., 2] > 120).all()


@pytest.mark.parametrize("enlarge", [1.1, 1.25, 1.4])
def test_a_video_subject_fills_the_enlarged_square(enlarge):
    frame, mask = scene(200, 100, 100, 30, 40, 40)
    config = _config(min_subject_enlarge=enlarge, max_subject_enlarge=enlarge)
    pair = make_video_pair(frame, mask, frame, mask, config, pair_rng(0, "a"))
    shown = bounding_box(np.asarray(pair.subject_mask) > 0)
    assert abs(shown.width - 64 / enlarge) <= 2
    assert abs(shown.x - (64 - shown.width) / 2) <= 2
    assert colours(pair.subject)[1] == 0


def test_a_video_target_is_enlarged_as_drawn_and_the_subject_is_where_it_says():
    frame, mask = scene(200, 160, 60, 50, 40, 30)
    sides = []
    for number in range(300):
        pair = make_video_pair(frame, mask, frame, mask, CONFIG, pair_rng(0, str(number)))
        sides.append(pair.target_crop.width)
        shown = bounding_box(np.asarray(pair.target_mask) > 0)
        assert np.abs(np.subtract(shown.to_list(), pair.target_box.to_list())).max() <= 1.5
    assert min(sides) >= 52
    assert max(sides) <= 116
    assert max(sides) - min(sides) > 55


def test_half_of_the_video_subjects_are_mirrored():
    frame, mask = scene(100, 100, 20, 20, 60, 60)
    mask[20:50, 50:80] = False  # an L, so that left and right differ
    never = make_video_pair(frame, mask, frame, mask, _config(flip_probability=0.0), pair_rng(0, "a"))
    always = make_video_pair(frame, mask, frame, mask, _config(flip_probability=1.0), pair_rng(0, "a"))
    assert (never.flipped, always.flipped) == (False, True)
    assert np.array_equal(np.asarray(ImageOps.mirror(never.subject)), np.asarray(always.subject))
    assert np.array_equal(np.asarray(ImageOps.mirror(never.subject_mask)), np.asarray(always.subject_mask))
    assert np.array_equal(np.asarray(never.target), np.asarray(always.target))
    flips = [make_video_pair(frame, mask, frame, mask, CONFIG, pair_rng(0, str(i))).flipped for i in range(200)]
    assert 70 <= sum(flips) <= 130


def test_a_mask_of_another_size_and_an_empty_one_are_refused():
    picture, mask = scene(50, 40, 5, 5, 20, 20)
    with pytest.raises(Refusal, match="40 x 50 px, the picture 50 x 40 px") as refusal:
        make_coco_pair(picture, mask.T, CONFIG, pair_rng(0, "a"))
    assert refusal.value.reason == "mask_mismatch"
    with pytest.raises(Refusal) as refusal:
        make_video_pair(picture, mask, picture, mask.T, CONFIG, pair_rng(0, "a"))
    assert refusal.value.reason == "mask_mismatch"
    for masks in ((mask & False, mask), (mask, mask & False)):
        with pytest.raises(Refusal) as refusal:
            make_video_pair(picture, masks[0], picture, masks[1], CONFIG, pair_rng(0, "a"))
        assert refusal.value.reason == "mask_empty"
