"""The miniature world as COCO and as YouTube-VIS in both layouts, and what it was made of."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from ezigen.mini.world.coco import SPLITS, captions_of, crowd_scene
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import make_variants, select_products
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.mini.world.youtube_vis import draw_video, write_instances, write_palette
from ezigen.pairs import SELECTION

SIDE = 128
NUM_IMAGES = 24
NUM_VIDEOS = 5
NUM_FRAMES = 10


@pytest.fixture(scope="session")
def composer():
    return Composer(make_variants(select_products(held_out=False), side=SIDE), SIDE, num_backgrounds=2, seed=0)


@pytest.fixture(scope="session")
def coco_folder(composer, tmp_path_factory):
    from ezigen.mini.world.coco import write_coco

    folder = tmp_path_factory.mktemp("coco")
    write_coco(composer, folder, NUM_IMAGES)
    return folder


@pytest.fixture(scope="session")
def drawn_images(composer):
    """What `coco_folder` shows in its training split: per picture its visible products with their true masks."""
    rng, images = np.random.default_rng((0, SPLITS.index("train2014"))), []
    for _ in range(NUM_IMAGES):
        scene = SCENE_NAMES[int(rng.integers(len(SCENE_NAMES)))]
        _, seen = crowd_scene(composer, rng, scene, int(rng.integers(1, 7)))
        captions_of(rng, seen, scene)
        images.append([(variant.product.subject_class, mask) for variant, mask in seen])
    return images


@pytest.fixture(scope="session")
def instances_folder(composer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("instances")
    write_instances(composer, folder, NUM_VIDEOS, NUM_FRAMES)
    return folder


@pytest.fixture(scope="session")
def palette_folder(composer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("palette")
    write_palette(composer, folder, NUM_VIDEOS, NUM_FRAMES)
    return folder


@pytest.fixture(scope="session")
def drawn_videos(composer):
    """What the video folders show: `(layout's stream) -> videos`; 11 is instances.json, 12 the palettes."""

    def draw(stream):
        rng = np.random.default_rng((0, stream))
        return [draw_video(composer, rng, f"{number:010x}", NUM_FRAMES) for number in range(1, NUM_VIDEOS + 1)]

    return draw


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a data set's folder that a test may damage."""

    def copy(folder):
        return shutil.copytree(folder, tmp_path / folder.name)

    return copy


@pytest.fixture
def edit():
    """Changes a JSON file in place: `edit(path, lambda content: ...)`."""

    def change(path, action):
        content = json.loads(path.read_text())
        action(content)
        path.write_text(json.dumps(content))

    return change


def overlap(first, second):
    """Intersection over union of two masks."""
    return (first & second).sum() / (first | second).sum()


def check_defects(refused, defects):
    """What is wrong with the data is listed as often as it is counted; what the selection leaves out is not."""
    wrong = {reason: number for reason, number in refused.items() if reason not in SELECTION}
    assert Counter(defect.reason for defect in defects) == wrong
    for defect in defects:
        assert defect.entry_id.startswith(f"{defect.source}/")
        assert defect.message
        (defect.entry_id + defect.message).encode()
