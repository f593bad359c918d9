import json
import pickle
from collections import Counter

import msgspec
import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy.ndimage import binary_fill_holes

from ezigen.config import CocoSelection, ConfigurationError
from ezigen.pairs import decode_segmentation
from tasks.datasets.coco import CocoReader
from tasks.datasets.units import UNIT_SCHEMA, CocoPicture, Unit
from tests.pairs.conftest import NUM_IMAGES, SIDE, check_defects, overlap

INSTANCES = "annotations/instances_train2014.json"
CAPTIONS = "annotations/captions_train2014.json"

# The world's pictures are small and have six objects at most.
SELECTION = CocoSelection(min_area_px=200, max_objects=2)


def read(folder, split="train", selection=SELECTION):
    refused, defects = Counter(), []
    units = list(CocoReader(str(folder), split).read(selection, refused, defects.append))
    check_defects(refused, defects)
    return units, [msgspec.json.decode(unit.payload, type=CocoPicture) for unit in units], refused


def subjects(pictures):
    """(picture, annotation) of every subject."""
    return [(picture.image_id, entry.annotation_id) for picture in pictures for entry in picture.objects]


def test_the_objects_of_the_world_come_back(coco_folder, drawn_images):
    loose = CocoSelection(min_area_px=1, max_objects=100)
    units, pictures, refused = read(coco_folder, selection=loose)
    found = {picture.image_id: picture for picture in pictures}
    numbers, num_crowds = iter(range(1, 10**6)), 0
    for image_id, drawn in enumerate(drawn_images, 1):
        objects = {entry.annotation_id: entry for entry in found[f"train/{image_id}"].objects}
        for subject_class, mask in drawn:
            number = next(numbers)
            if number % 15 == 14:  # the world's crowds
                num_crowds += 1
                assert str(number) not in objects
                continue
            entry = objects.pop(str(number))
            assert entry.subject_class == subject_class
            again = decode_segmentation(msgspec.json.decode(entry.segmentation), SIDE, SIDE)
            # Polygons have no holes: what they enclose belongs to the object.
            is_outline = bytes(entry.segmentation).startswith(b"[")
            assert overlap(again, binary_fill_holes(mask) if is_outline else mask) >= 0.99
        assert not objects
    assert refused == {"crowd": num_crowds}
    assert sum(unit.num_candidates for unit in units) == next(numbers) - 1 - num_crowds


@pytest.mark.parametrize("split", ["train", "val", "both"])
@pytest.mark.parametrize(("min_area_px", "max_objects"), [(1000, 4), (200, 2), (1, 1)])
def test_a_second_reading_by_pycocotools_alone_agrees(coco_folder, split, min_area_px, max_objects, capsys):
    units, pictures, _ = read(coco_folder, split, CocoSelection(min_area_px=min_area_px, max_objects=max_objects))
    expected = {}
    for name in ("train", "val") if split == "both" else (split,):
        instances = COCO(coco_folder / f"annotations/instances_{name}2014.json")
        captions = COCO(coco_folder / f"annotations/captions_{name}2014.json")
        for image_id in instances.getImgIds():
            ids = instances.getAnnIds(imgIds=image_id, areaRng=[min_area_px - 1e-6, 1e9], iscrowd=False)
            ranked = sorted(instances.loadAnns(ids), key=lambda entry: -entry["area"])
            ranked = ranked[: (len(ranked) + 1) // 2] if len(ranked) > max_objects else ranked
            texts = [entry["caption"] for entry in captions.loadAnns(captions.getAnnIds(imgIds=image_id))]
            if ranked:
                expected[f"{name}/{image_id}"] = (instances, ranked[:max_objects], max(texts, key=len))
    assert [unit.group_id for unit in units] == [f"coco/{key}" for key in expected]
    for unit, picture in zip(units, pictures, strict=True):
        instances, ranked, caption = expected[picture.image_id]
        assert unit.num_candidates == len(ranked) == len(picture.objects)
        assert picture.caption == caption
        assert picture.uri.endswith(instances.loadImgs(ranked[0]["image_id"])[0]["file_name"])
        for ours, theirs in zip(picture.objects, ranked, strict=True):
            assert ours.annotation_id == str(theirs["id"])
            assert ours.subject_class == instances.loadCats(theirs["category_id"])[0]["name"]
            mask = decode_segmentation(msgspec.json.decode(ours.segmentation), picture.height, picture.width)
            assert np.array_equal(mask, instances.annToMask(theirs).astype(bool))


def test_refused_and_ranked_objects_are_all_there_are(coco_folder):
    units, _, refused = read(coco_folder)
    num_objects = len(json.loads((coco_folder / INSTANCES).read_text())["annotations"])
    assert {"crowd", "area_too_small", "not_ranked"} == set(refused)
    assert sum(refused.values()) + sum(unit.num_candidates for unit in units) == num_objects


def test_both_splits_have_ids_of_their_own(coco_folder):
    units, pictures, _ = read(coco_folder, "both")
    assert {unit.group_id.split("/")[1] for unit in units} == {"train", "val"}
    assert len({unit.group_id for unit in units}) == len(units)
    assert len(set(subjects(pictures))) == len(subjects(pictures))


def test_units_are_rows_and_a_reader_can_be_sent(coco_folder):
    import pyarrow as pa

    reader = pickle.loads(pickle.dumps(CocoReader(str(coco_folder))))
    units = list(reader.read(SELECTION))
    table = pa.Table.from_pylist([unit.to_row() for unit in units], schema=UNIT_SCHEMA)
    assert [Unit.from_row(row | {"rank": 0}) for row in table.to_pylist()] == units


def test_a_caption_is_the_longest_without_line_breaks(coco_folder, copy_of, edit):
    folder = copy_of(coco_folder)
    long = "  a caption \n that is the longest of them all, far longer than any of the world's own captions  "
    edit(folder / CAPTIONS, lambda content: content["annotations"].append({"id": 0, "image_id": 2, "caption": long}))
    _, pictures, _ = read(folder)
    assert {p.image_id: p.caption for p in pictures}["train/2"] == " ".join(long.split())


def test_pictures_without_a_caption_are_refused(coco_folder, copy_of, edit):
    folder = copy_of(coco_folder)

    def forget(content):
        content["annotations"] = [
            entry | {"caption": " \n"} if entry["image_id"] == 2 else entry
            for entry in content["annotations"]
            if entry["image_id"] != 3
        ]

    before = Counter(image_id for image_id, _ in subjects(read(folder)[1]))
    edit(folder / CAPTIONS, forget)
    _, pictures, refused = read(folder)
    assert refused["no_caption"] == before["train/2"] + before["train/3"] > 1
    assert {"train/2", "train/3"} == set(before) - {picture.image_id for picture in pictures}


@pytest.mark.parametrize(
    "name", ["../val2014/COCO_val2014_000000000001.jpg", "/etc/passwd", "a//b.jpg", "", "a/\x00.jpg"]
)
def test_a_file_name_that_leads_out_of_the_data_set_is_refused(coco_folder, copy_of, edit, name):
    folder = copy_of(coco_folder)
    before = subjects(read(folder)[1])
    edit(folder / INSTANCES, lambda content: content["images"][1].update(file_name=name))
    _, pictures, refused = read(folder)
    assert refused["location_denied"] == sum(image_id == "train/2" for image_id, _ in before) > 0
    assert subjects(pictures) == [entry for entry in before if entry[0] != "train/2"]


def test_wrong_entries_cost_themselves_alone(coco_folder, copy_of, edit):
    folder = copy_of(coco_folder)
    before = subjects(read(folder)[1])
    chosen = dict.fromkeys(image_id for image_id, _ in before)
    _, second, third, fourth = (next(e for e in before if e[0] == image_id) for image_id in list(chosen)[:4])

    def break_it(content):
        by_id = {str(entry["id"]): entry for entry in content["annotations"]}
        by_id[second[1]]["category_id"] = 999
        by_id[third[1]]["area"] = "large"
        del by_id[fourth[1]]["image_id"]
        content["annotations"] += [by_id[before[0][1]] | {"area": 5000.0}] * 2  # the same id again
        content["annotations"].append(by_id[before[0][1]] | {"id": 10**6, "image_id": 10**6})
        content["images"].append(content["images"][0])  # twice
        content["images"].append({"id": 10**7, "file_name": 5})

    before_refused = read(folder)[2]
    edit(folder / INSTANCES, break_it)
    _, pictures, refused = read(folder)
    first = next(entry for entry in pictures[0].objects if entry.annotation_id == before[0][1])
    assert first.area_px != 5000.0  # of a repeated id the first counts
    lost = before_refused["not_ranked"] - refused["not_ranked"]
    assert {e for e in before if e not in subjects(pictures)} == {second, third, fourth}
    assert len(subjects(pictures)) == len(before) - 3 + lost
    refused.pop("not_ranked")
    assert refused == {
        "crowd": before_refused["crowd"],
        "area_too_small": before_refused["area_too_small"],
        "class_unknown": 1,
        "annotation_invalid": 3,
        "duplicate_id": 2,
        "picture_missing": 1,
    }


def test_a_text_that_is_not_utf8_costs_its_entry(coco_folder, copy_of, edit):
    folder = copy_of(coco_folder)
    # A wrong entry before it makes all of them be read one by one.
    edit(folder / INSTANCES, lambda content: content["images"].insert(0, {"id": "x"}))
    _, before, refused = read(folder)
    name = next(iter(before)).uri.rpartition("/")[2].encode()
    (folder / INSTANCES).write_bytes((folder / INSTANCES).read_bytes().replace(name, b"\x80" + name, 1))
    _, pictures, then_refused = read(folder)
    assert len(pictures) == len(before) - 1
    assert then_refused["annotation_invalid"] == refused["annotation_invalid"] + 1


def test_what_is_wrong_is_named_entry_by_entry(coco_folder, copy_of, edit):
    folder = copy_of(coco_folder)
    before = subjects(read(folder)[1])
    chosen = list(dict.fromkeys(image_id for image_id, _ in before))
    (_, first), (_, second) = (next(e for e in before if e[0] == image_id) for image_id in chosen[:2])

    def break_it(content):
        by_id = {str(entry["id"]): entry for entry in content["annotations"]}
        by_id[first]["category_id"] = 999
        content["annotations"].append(by_id[second] | {"area": 5000.0})
        content["annotations"].append(by_id[second] | {"id": 10**6, "image_id": "gone"})
        content["annotations"].insert(0, {"id": 7})

    edit(folder / INSTANCES, break_it)
    found = []
    list(CocoReader(str(folder)).read(SELECTION, on_defect=found.append))
    told = {defect.reason.value: (defect.entry_id, defect.message) for defect in found}
    assert len(found) == len(told)
    entry, message = told["annotation_invalid"]
    assert (entry, "image_id" in message) == ("coco/train/annotations[0]", True)
    assert told["class_unknown"] == (f"coco/{chosen[0]}/{first}", "the category 999 is not listed")
    assert told["duplicate_id"][0] == f"coco/{chosen[1]}/{second}"
    assert told["picture_missing"][0].startswith("coco/train/gone/")
    assert all(defect.entry_id.startswith(defect.group_id) for defect in found)
    assert {defect.source for defect in found} == {"coco"}


def test_an_empty_data_set_has_no_units(coco_folder, copy_of, edit):
    folder = copy_of(coco_folder)
    edit(folder / INSTANCES, lambda content: content.update(images=[], annotations=[]))
    edit(folder / CAPTIONS, lambda content: content.update(images=[], annotations=[]))
    assert read(folder) == ([], [], Counter())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "damaged or cut off"),
        (lambda _: b"", "is empty"),
        (lambda data: b"\xff" + data, "damaged or cut off"),
        (lambda _: b"[]", "not in the format"),
        (lambda _: b'{"images": []}', "not in the format.*annotations"),
        (lambda data: data.replace(b'"categories"', b'"kinds"'), "not in the format.*categories"),
        (lambda _: b'{"images":' + b"[" * 100_000, "damaged or cut off"),
    ],
)
def test_a_damaged_annotation_file_ends_the_run_by_name(coco_folder, copy_of, damage, message):
    folder = copy_of(coco_folder)
    path = folder / INSTANCES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=f"coco_uri .*instances_train2014.json .*{message}"):
        read(folder)


def test_a_damaged_caption_file_too(coco_folder, copy_of):
    folder = copy_of(coco_folder)
    (folder / CAPTIONS).write_text('{"annotations": [{"image_id": 1, "caption": 5}]}')
    with pytest.raises(ConfigurationError, match=r"captions_train2014.json .*annotations\[0\].caption"):
        read(folder)


def test_another_folder_is_refused_with_what_was_looked_for(coco_folder, palette_folder, copy_of, tmp_path):
    with pytest.raises(ConfigurationError, match=r"instances_train2014.json.*is missing \(it holds .*meta.json"):
        read(palette_folder)
    with pytest.raises(ConfigurationError, match="absent or empty"):
        read(tmp_path / "nothing")
    folder = copy_of(coco_folder)
    (folder / "train2014").rename(folder / "pictures")
    with pytest.raises(ConfigurationError, match=r": train2014 is missing .*pictures"):
        read(folder)
    assert read(folder, "val")[0]


def test_the_fingerprint_changes_with_the_annotation_files_alone(coco_folder, copy_of, edit):
    folder = copy_of(coco_folder)
    before = CocoReader(str(folder)).fingerprint()
    (folder / "train2014" / "new.jpg").write_bytes(b"")
    (folder / "annotations/captions_val2014.json").write_bytes(b"{}")
    assert CocoReader(str(folder)).fingerprint() == before
    edit(folder / CAPTIONS, lambda content: content["annotations"].pop())
    assert CocoReader(str(folder)).fingerprint() != before


def test_num_images(coco_folder):
    _, pictures, _ = read(coco_folder, selection=CocoSelection(min_area_px=1, max_objects=100))
    assert len(pictures) == NUM_IMAGES
