"""Where the embedded model's UNet sees a subject, against the truth: products it never saw, in drawn scenes."""

import numpy as np
import pytest
import torch
from PIL import Image

from ezigen.images.region import find_strong, to_region
from ezigen.mini.world.benchmarks import PRODUCTS, SIDE_PX
from ezigen.mini.world.captions import describe
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import HUE_SHIFTS, make_variant, select_products
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.models import load_stack
from ezigen.sketch import word_attention

NUM_PICTURES, GROW = 24, 0.03


def overlap(found, truth):
    return (found & truth).sum() / (found | truth).sum()


def centred_box(share):
    side = round(SIDE_PX * share**0.5)
    start = (SIDE_PX - side) // 2
    box = np.zeros((SIDE_PX, SIDE_PX), bool)
    box[start : start + side, start : start + side] = True
    return box


@pytest.fixture(scope="module")
def scenes():
    """(picture, truth, prompt, class word) of held-out products, every other one in a turned hue."""
    known = {product.name: product for product in select_products(held_out=True)}
    variants = [make_variant(known[name], HUE_SHIFTS[(2 * i) % 6] if i % 2 else 0) for i, name in enumerate(PRODUCTS)]
    composer, rng = Composer(variants, SIDE_PX, num_backgrounds=2, seed=3), np.random.default_rng(7)
    made = []
    for number in range(NUM_PICTURES):
        variant, scene = variants[number % len(variants)], SCENE_NAMES[number % len(SCENE_NAMES)]
        pixels, mask = composer.compose(rng, variant, scene)
        word = variant.product.subject_class
        made.append((Image.fromarray(pixels), mask > 127, describe(word, scene), word))
    return made


def test_the_class_word_finds_products_that_were_never_seen(scenes):
    torch.set_num_threads(1)
    stack = load_stack("mini", device="cpu")
    overlaps, covered = [], []
    for picture, truth, prompt, word in scenes:
        found = find_strong(word_attention(stack, picture, prompt, word).numpy())
        overlaps.append(overlap(found, truth))
        covered.append((np.asarray(to_region(found, GROW)) > 0)[truth].mean())
    # No box knows better than the one whose area suits all pictures at once.
    boxes = [np.mean([overlap(centred_box(share), scene[1]) for scene in scenes]) for share in np.arange(0.1, 1, 0.05)]
    print(
        f"IoU {np.mean(overlaps):.3f} (least {min(overlaps):.2f}), best centred box {max(boxes):.3f}, "
        f"everything {np.mean([truth.mean() for _, truth, *_ in scenes]):.3f}; grown, {np.mean(covered):.1%} of the "
        "truth are covered"
    )
    assert np.mean(overlaps) > max(boxes) + 0.15
    assert min(overlaps) > 0.5
    assert np.mean(covered) > 0.95


def test_it_is_the_word_that_finds_it(scenes):
    """A word of the scene has less of its attention on the product, in every picture."""
    stack = load_stack("mini", device="cpu")
    differences = []
    for picture, truth, prompt, word in scenes[:6]:
        inside = []
        for asked in (word, prompt.rpartition(" ")[2]):
            strength = word_attention(stack, picture, prompt, asked).numpy()
            inside.append(strength[truth].mean() / strength[~truth].mean())
        differences.append(inside[0] / inside[1])
    assert min(differences) > 1
