"""The world's data sets are read back with the tools people use for the real ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ezigen.mini.world.__main__ import main
from ezigen.mini.world.masks import to_polygons, to_rle

pytest.importorskip("pycocotools")
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

SIDE = 96


def decode(segmentation: object, side: int = SIDE) -> np.ndarray:
    """A segmentation of either kind as a mask."""
    if isinstance(segmentation, list):
        return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(segmentation, side, side))).astype(bool)
    runs = (
        segmentation
        if isinstance(segmentation["counts"], (str, bytes))
        else coco_masks.frPyObjects(segmentation, side, side)
    )
    return coco_masks.decode(runs).astype(bool)


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    main(["coco", str(folder), "--images", "8", "--side", str(SIDE)])
    return folder


@pytest.mark.parametrize("seed", range(20))
def test_masks_survive_both_codings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((17, 23)) < rng.uniform(0.02, 0.98)
    for compressed in (False, True):
        segmentation = to_rle(mask, compressed=compressed)
        runs = segmentation if compressed else coco_masks.frPyObjects(segmentation, 17, 23)
        assert np.array_equal(coco_masks.decode(runs).astype(bool), mask)


def test_polygons_cover_the_mask_they_come_from() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:40, 20:70], mask[60:80, 5:30], mask[40:50, 30:40] = True, True, True
    polygons = to_polygons(mask)
    assert len(polygons) == 2
    assert np.array_equal(decode(polygons), mask)


def test_coco_instances_and_captions_are_read_by_pycocotools(coco_folder: Path) -> None:
    instances = COCO(coco_folder / "annotations" / "instances_train2014.json")
    captions = COCO(coco_folder / "annotations" / "captions_train2014.json")
    assert len(instances.getImgIds()) == 8
    kinds = set()
    for annotation in instances.loadAnns(instances.getAnnIds()):
        kinds.add(type(annotation["segmentation"]))
        mask = decode(annotation["segmentation"])
        assert abs(mask.sum() - annotation["area"]) <= 0.1 * annotation["area"] + 8
        assert np.allclose(
            coco_masks.toBbox(coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))), annotation["bbox"], atol=1
        )
    assert kinds == {list, dict}
    for image in instances.loadImgs(instances.getImgIds()):
        assert len(captions.getAnnIds(imgIds=image["id"])) == 5
        with Image.open(coco_folder / "train2014" / image["file_name"]) as picture:
            assert picture.size == (SIDE, SIDE)


def test_instances_video_has_a_mask_or_null_per_frame(tmp_path: Path) -> None:
    main(["youtube-vis", str(tmp_path), "--videos", "6", "--frames", "7", "--side", str(SIDE)])
    data = json.loads((tmp_path / "instances.json").read_text())
    lengths = {video["id"]: video["length"] for video in data["videos"]}
    nulls = 0
    for row in data["annotations"]:
        assert len(row["segmentations"]) == len(row["bboxes"]) == len(row["areas"]) == lengths[row["video_id"]]
        for runs, area in zip(row["segmentations"], row["areas"], strict=True):
            nulls += runs is None
            assert (runs is None) == (area is None)
            assert runs is None or decode(runs).sum() == area
    assert nulls, "some product should leave the frame"
    assert all((tmp_path / "JPEGImages" / name).is_file() for video in data["videos"] for name in video["file_names"])


def test_palette_video_masks_name_the_objects_of_meta(tmp_path: Path) -> None:
    main(["youtube-vos", str(tmp_path), "--videos", "3", "--frames", "5", "--side", str(SIDE)])
    meta = json.loads((tmp_path / "meta.json").read_text())
    for name, video in meta["videos"].items():
        for value, entry in video["objects"].items():
            assert entry["category"]
            for number in range(5):
                with Image.open(tmp_path / "Annotations" / name / f"{number:05d}.png") as labels:
                    assert labels.mode == "P"
                    shown = bool((np.asarray(labels) == int(value)).any())
                assert shown == (f"{number:05d}" in entry["frames"])


def test_benchmarks_have_subjects_prompts_sources_and_masks(tmp_path: Path) -> None:
    main(["dreambench", str(tmp_path / "bench"), "--subjects", "3", "--held-out", "--side", str(SIDE)])
    text = (tmp_path / "bench" / "dataset" / "prompts_and_classes.txt").read_text()
    assert text.count(".format(unique_token, class_token)") == 20
    assert len(list((tmp_path / "bench" / "dataset").glob("*/*.jpg"))) == 12
    main(["dreamedit", str(tmp_path / "edit"), "--subjects", "2", "--images", "3", "--held-out", "--side", str(SIDE)])
    classes = json.loads((tmp_path / "edit" / "subjects.json").read_text())
    for name in classes:
        masks = sorted((tmp_path / "edit" / name / "mask").iterdir())
        assert len(masks) == len(list((tmp_path / "edit" / name / "source").iterdir())) == 3
        assert set(np.unique(np.asarray(Image.open(masks[0])))) == {0, 255}
