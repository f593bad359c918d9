import json
import pickle
import shutil
from collections import Counter

import msgspec
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from ezigen.config import ConfigurationError, VideoSelection
from ezigen.pairs import count_frame_pairs, decode_segmentation
from tasks.datasets.units import VideoObject
from tasks.datasets.youtube_vis import YoutubeVisReader
from tests.pairs.conftest import NUM_FRAMES, NUM_VIDEOS, SIDE, check_defects, overlap

SELECTION = VideoSelection()


def read(folder):
    refused, defects = Counter(), []
    units = list(YoutubeVisReader(str(folder)).read(SELECTION, refused, defects.append))
    check_defects(refused, defects)
    found = {unit.group_id: msgspec.json.decode(unit.payload, type=VideoObject) for unit in units}
    assert len(found) == len(units)
    return units, found, refused


def mask_of(found, frame):
    if frame.mask_uri:
        with Image.open(frame.mask_uri) as labels:
            return np.asarray(labels) == found.mask_value
    return decode_segmentation(msgspec.json.decode(frame.segmentation), SIDE, SIDE)


def check_against_the_world(folder, videos, object_ids):
    """Class, frames and masks of every object are those that were drawn."""
    units, found, refused = read(folder)
    assert not refused
    ids = iter(object_ids)
    for video in videos:
        for number, (variant, masks) in enumerate(zip(video.variants, video.masks, strict=True), 1):
            entry = found.pop(f"youtube_vis/{video.name}/{next(ids)(number)}")
            assert entry.subject_class == variant.product.subject_class
            assert entry.video == video.name
            shown = [(f"{i:05d}", mask) for i, mask in enumerate(masks) if mask is not None]
            assert [frame.name for frame in entry.frames] == [name for name, _ in shown]
            for frame, (name, mask) in zip(entry.frames, shown, strict=True):
                assert frame.uri == str(folder / "JPEGImages" / video.name / f"{name}.jpg")
                assert overlap(mask_of(entry, frame), mask) >= 0.99
    assert not found
    assert [u.num_candidates for u in units] == [
        count_frame_pairs(sum(mask is not None for mask in masks), SELECTION) for v in videos for masks in v.masks
    ]
    return units


def test_the_objects_of_the_world_come_back_from_instances(instances_folder, drawn_videos):
    count = iter(range(1, 100))
    units = check_against_the_world(instances_folder, drawn_videos(11), iter(lambda: lambda _: next(count), None))
    assert len({unit.group_id.split("/")[1] for unit in units}) == NUM_VIDEOS
    assert all(unit.subject_class for unit in units)


def test_the_objects_of_the_world_come_back_from_palettes(palette_folder, drawn_videos):
    check_against_the_world(palette_folder, drawn_videos(12), iter(lambda: str, None))


def test_a_second_reading_by_pycocotools_alone_agrees(instances_folder):
    data = json.loads((instances_folder / "instances.json").read_text())
    classes = {category["id"]: category["name"] for category in data["categories"]}
    _, found, _ = read(instances_folder)
    assert len(found) == len(data["annotations"])
    for row, entry in zip(data["annotations"], found.values(), strict=True):
        assert entry.subject_class == classes[row["category_id"]]
        theirs = [coco_masks.decode(runs).astype(bool) for runs in row["segmentations"] if runs is not None]
        assert len(theirs) == len(entry.frames)
        assert all(np.array_equal(mask_of(entry, f), mask) for f, mask in zip(entry.frames, theirs, strict=True))


def test_plain_run_lengths_and_the_other_file_name_are_read_too(instances_folder, copy_of, edit):
    folder = copy_of(instances_folder)
    _, before, _ = read(folder)

    def write_plain(content):
        for row in content["annotations"]:
            row["segmentations"] = [None if r is None else _plain(r) for r in row["segmentations"]]

    edit(folder / "instances.json", write_plain)
    (folder / "instances.json").rename(folder / "train.json")
    _, after, _ = read(folder)
    assert list(after) == list(before)
    for name, entry in after.items():
        pairs = zip(entry.frames, before[name].frames, strict=True)
        assert all(np.array_equal(mask_of(entry, a), mask_of(entry, b)) for a, b in pairs)


def _plain(runs):
    from ezigen.mini.world.masks import run_lengths

    return {"size": runs["size"], "counts": run_lengths(coco_masks.decode(runs).astype(bool))}


def test_instances_win_where_both_layouts_are(instances_folder, palette_folder, copy_of):
    folder = copy_of(palette_folder)
    reader = YoutubeVisReader(str(folder))
    assert reader.find_layout() == "meta.json"
    before = reader.fingerprint()
    shutil.copy(instances_folder / "instances.json", folder / "train.json")
    assert reader.find_layout() == "train.json"
    shutil.copy(instances_folder / "instances.json", folder / "instances.json")
    assert pickle.loads(pickle.dumps(reader)).find_layout() == "instances.json"
    assert reader.fingerprint() != before


def test_an_unknown_layout_is_refused_with_what_was_looked_for(coco_folder, instances_folder, copy_of, tmp_path):
    wanted = r"instances.json or train.json beside JPEGImages/, or meta.json beside JPEGImages/ and Annotations/"
    with pytest.raises(ConfigurationError, match=rf"youtube_vis_uri .*{wanted} \(it holds annotations, train2014"):
        read(coco_folder)
    with pytest.raises(ConfigurationError, match="absent or empty"):
        read(tmp_path / "nothing")
    folder = copy_of(instances_folder)
    (folder / "instances.json").rename(folder / "meta.json")
    with pytest.raises(ConfigurationError, match=wanted):
        read(folder)


@pytest.mark.parametrize("layout", ["instances.json", "meta.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-10], "damaged or cut off"),
        (lambda _: b"", "is empty"),
        (lambda _: b'{"videos": 5}', "not in the format"),
        (lambda _: b"null", "not in the format"),
    ],
)
def test_a_damaged_annotation_file_ends_the_run_by_name(
    instances_folder, palette_folder, copy_of, layout, damage, message
):
    folder = copy_of(instances_folder if layout == "instances.json" else palette_folder)
    path = folder / layout
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=f"youtube_vis_uri .*{layout} .*{message}"):
        read(folder)


def test_empty_annotations_have_no_units(instances_folder, palette_folder, copy_of, edit):
    folder = copy_of(instances_folder)
    edit(folder / "instances.json", lambda content: content.update(videos=[], annotations=[], categories=[]))
    assert read(folder) == ([], {}, Counter())
    folder = copy_of(palette_folder)
    edit(folder / "meta.json", lambda content: content.update(videos={}))
    assert read(folder) == ([], {}, Counter())


def _set(index, **fields):
    return lambda content: content["annotations"][index].update(fields)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(0, category_id=999), "class_unknown"),
        (_set(0, video_id=999), "picture_missing"),
        (_set(0, iscrowd=1), "crowd"),
        (_set(0, id=2), "duplicate_id"),
        (_set(0, segmentations=[]), "mask_mismatch"),
        (_set(0, segmentations=None), "annotation_invalid"),
        (_set(0, segmentations=[None] * NUM_FRAMES), "too_few_frames"),
        (_set(0, segmentations=[None] * (NUM_FRAMES - 1) + [{}]), "too_few_frames"),
    ],
)
def test_a_wrong_object_costs_itself_alone(instances_folder, copy_of, edit, change, reason):
    folder = copy_of(instances_folder)
    _, before, _ = read(folder)
    edit(folder / "instances.json", change)
    _, after, refused = read(folder)
    assert refused == {reason: 1}
    assert len(after) == len(before) - 1


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "x/../../../a.jpg"])
def test_a_frame_outside_the_data_set_is_refused_with_its_video(instances_folder, copy_of, edit, name):
    folder = copy_of(instances_folder)
    units, _, _ = read(folder)
    video = units[0].group_id.split("/")[1]
    affected = [unit for unit in units if unit.group_id.split("/")[1] == video]

    def point_away(content):
        content["videos"][0]["file_names"][3] = name

    edit(folder / "instances.json", point_away)
    after, _, refused = read(folder)
    assert refused == {"location_denied": len(affected)}
    assert after == units[len(affected) :]


def test_a_video_listed_twice_counts_once(instances_folder, copy_of, edit):
    folder = copy_of(instances_folder)
    units, _, _ = read(folder)
    edit(folder / "instances.json", lambda content: content["videos"].append(content["videos"][0] | {"width": 7}))
    after, _, refused = read(folder)
    assert (after, refused) == (units, {"duplicate_id": 1})


def test_what_is_wrong_is_named_entry_by_entry(instances_folder, palette_folder, copy_of, edit):
    folder = copy_of(instances_folder)
    units, _, _ = read(folder)
    first, second = (unit.group_id for unit in units[:2])

    def break_it(content):
        content["annotations"][0]["category_id"] = 999
        content["annotations"][1]["segmentations"] = content["annotations"][1]["segmentations"][1:]
        content["annotations"].append({"id": 5})
        content["videos"].append({"id": []})

    edit(folder / "instances.json", break_it)
    found = []
    list(YoutubeVisReader(str(folder)).read(SELECTION, on_defect=found.append))
    told = {defect.entry_id: (defect.reason.value, defect.message) for defect in found}
    assert told[first] == ("class_unknown", "the category 999 is not listed")
    assert told[second] == ("mask_mismatch", f"{NUM_FRAMES - 1} segmentations for {NUM_FRAMES} frames")
    others = {name: reason for name, (reason, _) in told.items() if "[" in name}
    assert sorted(others.values()) == ["annotation_invalid"] * 2
    assert sorted(name.split("[")[0] for name in others) == ["youtube_vis/annotations", "youtube_vis/videos"]

    folder = copy_of(palette_folder)
    edit(folder / "meta.json", lambda content: content["videos"].update({"odd": {"objects": {"0": {}}}, "x/..": {}}))
    list(YoutubeVisReader(str(folder)).read(SELECTION, on_defect=found.append))
    assert [defect.entry_id for defect in found[-2:]] == ["youtube_vis/odd/0", "youtube_vis/x/.."]


def test_wrong_entries_of_meta_cost_themselves_alone(palette_folder, copy_of, edit):
    folder = copy_of(palette_folder)
    units, _, _ = read(folder)

    def break_it(content):
        videos = content["videos"]
        good = next(iter(next(iter(videos.values()))["objects"].values()))
        videos["../outside"] = {"objects": {"1": good}}
        videos["broken"] = {"objects": [1, 2]}
        videos["odd"] = {
            "objects": {
                "one": good,
                "0": good,
                "256": good,
                "1": good | {"category": " "},
                "2": good | {"frames": ["../../00001", "00002"]},
                "3": good | {"frames": "all"},
                "4": good | {"frames": ["00000", "00000"]},
            }
        }

    edit(folder / "meta.json", break_it)
    after, _, refused = read(folder)
    assert after == units
    assert refused == {"location_denied": 2, "annotation_invalid": 5, "class_unknown": 1, "too_few_frames": 1}


def test_a_text_that_is_not_utf8_costs_its_entry(palette_folder, instances_folder, copy_of, edit):
    for source, name, text in (
        (palette_folder, "meta.json", b'"00001"'),
        (instances_folder, "instances.json", b"/00001."),
    ):
        folder = copy_of(source)
        units, _, _ = read(folder)
        damaged = (folder / name).read_bytes().replace(text, text.replace(b"1", b"\x80"), 1)
        (folder / name).write_bytes(damaged)
        after, _, refused = read(folder)
        assert 0 < len(after) < len(units)
        assert refused["annotation_invalid"] > 0


def test_a_video_of_impossible_size_is_refused(instances_folder, copy_of, edit):
    folder = copy_of(instances_folder)
    edit(folder / "instances.json", lambda content: content["videos"][0].update(width=-SIDE, height=-SIDE))
    assert read(folder)[2]["annotation_invalid"] == 1


def test_a_class_is_written_as_a_caption_takes_it(palette_folder, copy_of, edit):
    folder = copy_of(palette_folder)

    def rename(content):
        next(iter(next(iter(content["videos"].values()))["objects"].values()))["category"] = "giant_panda"

    edit(folder / "meta.json", rename)
    assert read(folder)[0][0].subject_class == "giant panda"
