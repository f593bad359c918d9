"""The miniature world: products, captions, composition, catalog."""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ezigen.mini import catalog_file, read_products
from ezigen.mini.recipe.tokenizer import MAX_TOKENS, build_tokenizer
from ezigen.mini.world.captions import PHRASES, random_caption, vocabulary_words
from ezigen.mini.world.compose import Composer, Pose, draw_pose
from ezigen.mini.world.morphs import make_morph
from ezigen.mini.world.products import PICTURES, make_variant, make_variants, select_products
from ezigen.mini.world.scenes import SCENE_NAMES, draw_scene


@pytest.fixture(scope="module")
def composer() -> Composer:
    products = select_products(held_out=True)[:3]
    return Composer(make_variants(products), num_backgrounds=2)


def test_enough_products_are_held_out_and_their_pictures_are_committed() -> None:
    held_out = [p for p in read_products() if p.held_out]
    assert len(held_out) >= 16
    assert select_products(held_out=True) == held_out
    names = [p.name for p in read_products()]
    assert len(set(names)) == len(names)
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 1_000_000


def test_hues_change_colours_and_nothing_else() -> None:
    product = next(p for p in read_products() if p.name == "pineapple")
    first, turned = (make_variant(product, shift) for shift in (0, 120))
    assert np.array_equal(first.pixels[..., 3], turned.pixels[..., 3])
    assert first.hue_word != turned.hue_word


def test_every_scene_draws_differently_each_time_and_has_captions() -> None:
    assert set(PHRASES) == set(SCENE_NAMES)
    for name in SCENE_NAMES:
        pictures = [np.asarray(draw_scene(name, np.random.default_rng(seed), 64)) for seed in (0, 1, 0)]
        assert pictures[0].shape == (64, 64, 3)
        assert np.array_equal(pictures[0], pictures[2])
        assert not np.array_equal(pictures[0], pictures[1])


def test_a_sample_is_a_function_of_its_generator(composer: Composer) -> None:
    first, again = (composer.sample(np.random.default_rng(7), 0.2) for _ in range(2))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.caption == again.caption


def test_the_mask_says_where_the_product_is(composer: Composer) -> None:
    variant = composer.variants[0]
    pose = Pose(0.6, 0.5, 0.9, 0.0, False, 1.0)
    pixels, mask = composer.compose(np.random.default_rng(0), variant, None, pose)
    rows, columns = np.nonzero(mask > 127)
    assert (pixels[mask == 0] == 255).all()
    assert abs(rows.max() + 1 - 0.9 * 64) <= 2
    assert abs((columns.min() + columns.max() + 1) / 2 - 32) <= 5
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(0.6 * 64, abs=3)


def test_mirroring_mirrors(composer: Composer) -> None:
    masks = []
    for mirrored in (False, True):
        pose = Pose(0.7, 0.5, 0.9, 0.0, mirrored, 1.0)
        masks.append(composer.compose(np.random.default_rng(0), composer.variants[0], None, pose)[1].astype(int))
    assert np.abs(masks[0][:, ::-1] - masks[1]).mean() < 4


def test_products_stay_inside_the_frame() -> None:
    rng = np.random.default_rng(0)
    for scene in (*SCENE_NAMES, None):
        for _ in range(50):
            pose = draw_pose(rng, scene)
            assert 0.4 <= pose.size <= 0.95
            assert pose.foot <= 1.0
            assert pose.foot - pose.size >= -0.05


def test_every_word_of_the_world_is_one_token_and_any_text_has_tokens(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(vocabulary_words(), tmp_path)
    assert all(len(tokenizer(word).input_ids) == 3 for word in vocabulary_words())
    strange = tokenizer("Übergrößenträger ☂ xyz " * 40, truncation=True).input_ids
    assert len(strange) == MAX_TOKENS
    assert tokenizer.decode(tokenizer("a zeppelin").input_ids, skip_special_tokens=True).strip() == "a zeppelin"
    rng = np.random.default_rng(0)
    for _ in range(200):
        caption = random_caption(rng, "alarm clock", "clock", "red", SCENE_NAMES[int(rng.integers(10))])
        assert len(tokenizer(caption).input_ids) < MAX_TOKENS


def test_the_sample_catalog_has_good_rows_and_four_wrong_ones() -> None:
    with catalog_file().open(encoding="utf-8", newline="") as rows:
        table = list(csv.DictReader(rows))
    wrong = [row for row in table if row["item_id"].startswith("wrong-")]
    good = [row for row in table if row not in wrong]
    assert len(wrong) == 4
    assert len({row["item_id"] for row in table}) == len(table)
    assert len({row["subject_uri"] for row in good}) >= 16
    for row in good:
        with Image.open(catalog_file().parent / row["subject_uri"]) as picture:
            picture.load()
            assert picture.size == (192, 192)
    prompts = {row["subject_uri"]: set() for row in good}
    for row in good:
        prompts[row["subject_uri"]].add(row["prompt"])
    assert all(len(texts) == 2 for texts in prompts.values())


def test_a_morph_is_whole_and_like_no_other() -> None:
    product = select_products(held_out=False)[0]
    morphs = [make_morph(np.random.default_rng(seed), seed, product) for seed in range(4)]
    again = make_morph(np.random.default_rng(0), 0, product)
    assert np.array_equal(again.pixels, morphs[0].pixels)
    assert len({morph.key for morph in morphs}) == 4
    for morph in morphs:
        assert morph.pixels.shape == (96, 96, 4)
        rows, columns = np.nonzero(morph.pixels[..., 3] > 24)
        assert max(rows.max() - rows.min(), columns.max() - columns.min()) > 90
    for one, other in pairwise(morphs):
        assert np.abs(one.pixels.astype(int) - other.pixels).mean() > 10
