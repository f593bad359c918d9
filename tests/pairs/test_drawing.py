import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from ezigen.config import CocoSelection, PairConfig, VideoSelection
from ezigen.pairs import Box, check_frames, cut_target
from tasks.datasets.coco import CocoReader
from tasks.datasets.drawing import Pair, PictureLimits, RefusedPair, build_unit
from tasks.datasets.units import Unit
from tasks.datasets.youtube_vis import YoutubeVisReader
from tasks.storage.locations import Locations
from tests.pairs.conftest import SIDE

CONFIG = PairConfig(size_px=48, coco=CocoSelection(min_area_px=200))
EVERYTHING = range(1000)


class Data:
    """A data set's units and a `read` that counts."""

    def __init__(self, reader, selection):
        self.reader = reader
        self.units = list(reader.read(selection))
        self.read_uris = Counter()

    def read(self, uri):
        self.read_uris[uri] += 1
        return self.reader.locations.read_bytes(uri)

    def build(self, ranks=EVERYTHING, config=CONFIG, units=None, **options):
        found = [list(build_unit(u, ranks, config, self.read, **options)) for u in units or self.units]
        return list(chain.from_iterable(found))


def coco(folder):
    return Data(CocoReader(str(folder)), CONFIG.coco)


def videos(folder):
    return Data(YoutubeVisReader(str(folder)), CONFIG.youtube_vis)


def split(built):
    pairs = [entry for entry in built if isinstance(entry, Pair)]
    refused = [entry for entry in built if isinstance(entry, RefusedPair)]
    assert len(pairs) + len(refused) == len(built)
    return pairs, refused


def digest(pair):
    """Everything that a pair is."""
    pictures = pair.pictures
    pixels = [pictures.subject, pictures.subject_mask, pictures.target, pictures.target_mask]
    rest = repr([dataclasses.replace(pair, pictures=None), pictures.subject_box, pictures.target_box])
    rest += repr([pictures.target_crop, pictures.flipped])
    return hashlib.sha256(b"".join(p.tobytes() for p in pixels) + rest.encode()).hexdigest()


def test_every_object_of_a_picture_is_a_pair(coco_folder):
    data = coco(coco_folder)
    pairs, refused = split(data.build())
    assert not refused
    assert len(pairs) == sum(unit.num_candidates for unit in data.units)
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
    assert set(data.read_uris.values()) == {1}  # a picture is read once for all of its objects
    content = json.loads((coco_folder / "annotations/instances_train2014.json").read_text())
    by_id = {str(entry["id"]): entry for entry in content["annotations"]}
    for pair in pairs:
        source, name, image_id, annotation_id = pair.pair_id.split("/")
        entry = by_id[annotation_id]
        assert (source, name, int(image_id)) == ("coco", "train", entry["image_id"])
        assert pair.subject_image_id == pair.target_image_id == f"train/{image_id}"
        assert pair.mask_share == pytest.approx(entry["area"] / SIDE**2, rel=0.05, abs=0.002)
        assert pair.frame_distance is None
        assert np.abs(np.subtract(pair.pictures.subject_box.to_list(), entry["bbox"])).max() <= 1
        source_picture = Image.open(pair.target_uri).convert("RGB")
        again = cut_target(source_picture, pair.pictures.target_crop, 48)
        assert np.array_equal(np.asarray(again), np.asarray(pair.pictures.target))


@pytest.mark.parametrize("layout", ["instances_folder", "palette_folder"])
def test_a_video_gives_pairs_of_two_frames(layout, request):
    data = videos(request.getfixturevalue(layout))
    pairs, refused = split(data.build(range(3)))
    assert len(pairs) >= 2 * len(data.units)
    assert len({entry.pair_id for entry in pairs + refused}) == len(pairs) + len(refused)
    for pair in pairs:
        source, video, _, frames = pair.pair_id.split("/")
        start, other = frames.split("-")
        assert source == "youtube_vis"
        assert (pair.subject_image_id, pair.target_image_id) == (f"{video}/{start}", f"{video}/{other}")
        assert pair.target_uri.endswith(f"JPEGImages/{video}/{other}.jpg")
        assert pair.caption == f"a photo of a {pair.subject_class}."
        assert 1 <= pair.frame_distance <= int(other) - int(start)
        assert 0.01 <= pair.mask_share <= 0.64
        crop = pair.pictures.target_crop
        assert crop.width == crop.height
        assert Box(0, 0, SIDE, SIDE).seen_in(crop, 1) == Box(0, 0, 1, 1)  # inside the frame


def test_both_layouts_of_the_same_videos_give_the_same_pixels(palette_folder, drawn_videos, copy_of):
    """The palettes' videos written as instances too: objects are named differently, so draws are compared by frames."""
    from ezigen.mini.world.youtube_vis import instance_rows

    folder = copy_of(palette_folder)
    drawn = drawn_videos(12)
    classes = sorted({v.product.subject_class for video in drawn for v in video.variants})
    categories = {name: number for number, name in enumerate(classes, 1)}
    rows = [instance_rows(video, number, categories) for number, video in enumerate(drawn, 1)]
    names = [
        {"id": n, "file_names": [f"{v.name}/{i:05d}.jpg" for i in range(len(v.frames))]} for n, v in enumerate(drawn, 1)
    ]
    numbered = [{"id": f"{row['video_id']}.{i}"} | row for video in rows for i, row in enumerate(video, 1)]
    listed = [{"id": number, "name": name} for name, number in categories.items()]
    palette = videos(folder).units
    (folder / "instances.json").write_text(json.dumps({"videos": names, "annotations": numbered, "categories": listed}))
    instances = videos(folder)
    assert [u.num_candidates for u in instances.units] == [u.num_candidates for u in palette]
    # The same group_id makes the same draws.
    renamed = [dataclasses.replace(a, group_id=b.group_id) for a, b in zip(instances.units, palette, strict=True)]
    ours, theirs = instances.build(range(3), units=renamed), instances.build(range(3), units=palette)
    assert [digest(a) if isinstance(a, Pair) else a for a in ours] == [
        digest(b) if isinstance(b, Pair) else b for b in theirs
    ]
    assert len(split(ours)[0]) > 10


def test_pairs_do_not_depend_on_which_ranks_are_built_together(coco_folder, instances_folder):
    for data in (coco(coco_folder), videos(instances_folder)):
        together = [digest(pair) for pair in split(data.build(range(6)))[0]]
        for ranks in ((range(2), range(2, 3), range(3, 6)), tuple(range(i, i + 1) for i in range(6))):
            apart = {u.group_id: [split(data.build(r, units=[u]))[0] for r in ranks] for u in data.units}
            assert [digest(p) for parts in apart.values() for p in chain.from_iterable(parts)] == together


@pytest.mark.parametrize("missing", [False, True])
def test_refused_draws_are_given_once_however_ranks_are_divided(palette_folder, copy_of, missing):
    folder, video = copy_of(palette_folder), VideoSelection()
    if missing:
        for path in (folder / "JPEGImages").rglob("0000[3579].jpg"):
            path.unlink()
    else:
        video = VideoSelection(max_mask_share=0.1, min_mask_share=0.04)
    config = CONFIG.model_copy(update={"youtube_vis": video})
    data = Data(YoutubeVisReader(str(folder)), video)
    num_refused = 0
    for unit in data.units:
        together = data.build(range(4), config, [unit])
        if len(split(together)[0]) < 4:
            continue
        apart = [entry for i in range(4) for entry in data.build(range(i, i + 1), config, [unit])]
        assert [entry.pair_id for entry in apart] == [entry.pair_id for entry in together]
        num_refused += len(split(apart)[1])
    assert num_refused > 3


def test_a_pair_depends_on_the_seed_and_on_nothing_of_the_process(instances_folder):
    data = videos(instances_folder)
    unit = data.units[0]
    first = [digest(pair) for pair in split(data.build(range(2), units=[unit]))[0]]
    other = [digest(p) for p in split(data.build(range(2), CONFIG.model_copy(update={"seed": 1}), [unit]))[0]]
    assert not set(first) & set(other)
    script = (
        "import pickle, sys\nfrom tests.pairs.test_drawing import *\n"
        "unit, config, locations = pickle.loads(sys.stdin.buffer.read())\n"
        "print([digest(p) for p in split(list(build_unit(unit, range(2), config, locations.read_bytes)))[0]])"
    )
    sent = pickle.dumps((unit, CONFIG, data.reader.locations))
    answer = subprocess.run([sys.executable, "-c", script], input=sent, stdout=subprocess.PIPE, check=True).stdout
    assert answer.decode().strip() == str(first)


STRICT = VideoSelection(
    max_target_box_share=0.4,
    min_subject_box_share=0.36,
    min_mask_share=0.06,
    max_mask_share=0.14,
    min_connected_share=0.99,
)


@pytest.mark.parametrize("video", [VideoSelection(), STRICT])
def test_accepted_frames_are_those_that_the_predicates_accept(palette_folder, video):
    """Every draw of an object, judged again from the files."""
    data, config = videos(palette_folder), CONFIG.model_copy(update={"youtube_vis": video})
    reasons = Counter()
    for unit in data.units:
        built = data.build(config=config, units=[unit])
        assert len(built) == unit.num_candidates
        _, name, value = unit.group_id.split("/")
        for entry in built:
            paths = [palette_folder / "Annotations" / name / f"{frame}.png" for frame in _frames(entry)]
            masks = [np.asarray(Image.open(path)) == int(value) for path in paths]
            reason = None if isinstance(entry, Pair) else entry.reason
            assert reason == check_frames(*masks, video)
            reasons[reason] += 1
    if video is STRICT:
        assert {None, "target_box_too_large", "subject_box_too_small", "mask_too_small", "mask_too_large"} <= set(
            reasons
        )


def test_an_exhausted_object_ends(instances_folder, copy_of, edit):
    folder = copy_of(instances_folder)

    def keep_two(content):
        row = content["annotations"][0]
        row["segmentations"] = [s if i in (2, 5) else None for i, s in enumerate(row["segmentations"])]

    edit(folder / "instances.json", keep_two)
    data = videos(folder)
    built = data.build(units=data.units[:1])
    assert [entry.pair_id.rpartition("/")[2] for entry in built] == ["00002-00005"]
    assert data.units[0].num_candidates == 1


def test_an_object_that_never_fits_is_given_up_after_some_draws(instances_folder, copy_of):
    folder = copy_of(instances_folder)
    for path in (folder / "JPEGImages").rglob("*.jpg"):
        path.unlink()
    data = videos(folder)
    built = data.build(range(1), units=data.units[:1])
    assert [entry.reason for entry in built] == ["picture_missing"] * 20
    assert set(data.read_uris.values()) == {1}  # a frame that is missing is looked for once
    assert len(data.build(range(2, 4), units=data.units[:1])) == 0


def _damage_coco(folder, number, action):
    path = folder / "train2014" / f"COCO_train2014_{number:012d}.jpg"
    action(path)
    return f"train/{number}"


def _cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _shrink(path):
    with Image.open(path) as picture:
        small = picture.resize((64, 64))
    small.save(path)


def _make_folder(path):
    path.unlink()
    path.mkdir()


def _lead_out(path):
    outside = path.parents[2] / "outside.jpg"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("action", "reason", "words"),
    [
        (lambda path: path.unlink(), "picture_missing", "does not exist"),
        (_make_folder, "picture_missing", "not a file"),
        (_cut_in_half, "picture_undecodable", "damaged or truncated"),
        (lambda path: path.write_bytes(b""), "picture_undecodable", "empty"),
        (lambda path: path.write_text("<html>"), "picture_undecodable", "not a picture"),
        (_shrink, "mask_mismatch", "64 x 64 px, its annotations say 128 x 128 px"),
        (_lead_out, "location_denied", "outside the allowed roots"),
    ],
)
def test_a_bad_picture_costs_its_own_pairs_alone(coco_folder, copy_of, action, reason, words):
    before, _ = split(coco(coco_folder).build())
    folder = copy_of(coco_folder)
    image_id = _damage_coco(folder, 2, action)
    pairs, refused = split(coco(folder).build())
    expected = [pair.pair_id for pair in before if pair.subject_image_id == image_id]
    assert [entry.pair_id for entry in refused] == expected
    assert len(expected) > 1
    for entry in refused:
        assert (entry.reason, entry.source, entry.group_id) == (reason, "coco", f"coco/{image_id}")
        assert words in entry.message
        assert "COCO_train2014_000000000002.jpg" in entry.message
        assert entry.subject_class
    assert [pair.pair_id for pair in pairs] == [p.pair_id for p in before if p.subject_image_id != image_id]


def test_a_linked_folder_of_pictures_is_the_operators_own(coco_folder, copy_of):
    folder = copy_of(coco_folder)
    (folder / "train2014").rename(folder.parent / "elsewhere")
    (folder / "train2014").symlink_to(folder.parent / "elsewhere")
    assert not split(coco(folder).build())[1]


def test_pictures_over_the_limits_are_refused_before_they_are_decoded(coco_folder):
    data = coco(coco_folder)
    for limits in (PictureLimits(max_side_px=SIDE - 1), PictureLimits(max_pixels=SIDE * SIDE - 1)):
        pairs, refused = split(data.build(limits=limits))
        assert not pairs
        assert {entry.reason for entry in refused} == {"picture_too_large"}
    assert not split(data.build(limits=PictureLimits(SIDE, SIDE * SIDE)))[1]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[0, 0, 500, 0, 500, 500]], "mask_mismatch"),
        ({"size": [64, 64], "counts": [64 * 64]}, "mask_mismatch"),
        ({"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}, "mask_empty"),
        ({"size": [SIDE, SIDE], "counts": "not run lengths"}, "mask_invalid"),
        (None, "mask_invalid"),
    ],
)
def test_a_bad_mask_costs_its_own_pair_alone(coco_folder, copy_of, edit, segmentation, reason):
    before, _ = split(coco(coco_folder).build())
    folder, victim = copy_of(coco_folder), before[1]

    def break_it(content):
        for entry in content["annotations"]:
            if str(entry["id"]) == victim.pair_id.split("/")[-1]:
                entry["segmentation"] = segmentation

    edit(folder / "annotations/instances_train2014.json", break_it)
    pairs, refused = split(coco(folder).build())
    assert [(entry.pair_id, entry.reason) for entry in refused] == [(victim.pair_id, reason)]
    assert len(pairs) == len(before) - 1


def test_pictures_of_no_stated_size_are_measured(coco_folder, instances_folder, copy_of, edit):
    for folder, name in ((coco_folder, "annotations/instances_train2014.json"), (instances_folder, "instances.json")):
        data = coco if folder == coco_folder else videos
        before = [digest(pair) for pair in split(data(folder).build(range(2)))[0]]
        changed = copy_of(folder)

        def forget(content):
            for entry in content.get("images", []) + content.get("videos", []):
                del entry["width"], entry["height"]

        edit(changed / name, forget)
        after = split(data(changed).build(range(2)))[0]
        moved = [dataclasses.replace(p, target_uri=p.target_uri.replace(str(changed), str(folder))) for p in after]
        assert [digest(pair) for pair in moved] == before


def test_a_video_with_missing_frames_gives_pairs_of_the_others(instances_folder, copy_of):
    folder = copy_of(instances_folder)
    video = videos(folder).units[0].group_id.split("/")[1]
    for number in (1, 4, 7):
        (folder / "JPEGImages" / video / f"{number:05d}.jpg").unlink()
    _cut_in_half(folder / "JPEGImages" / video / "00003.jpg")
    data = videos(folder)
    pairs, refused = split(data.build(units=data.units[:1]))
    gone, damaged = {"00001", "00004", "00007"}, {"00003"}
    assert pairs
    assert {frame for pair in pairs for frame in _frames(pair)} <= {f"{i:05d}" for i in (0, 2, 5, 6, 8, 9)}
    reasons = Counter(entry.reason for entry in refused)
    assert reasons["picture_missing"] >= 3
    assert reasons["picture_undecodable"] >= 1
    for entry in refused:
        if entry.reason.startswith("picture"):
            assert set(_frames(entry)) & (gone if entry.reason == "picture_missing" else damaged)


def _frames(entry):
    return entry.pair_id.rpartition("/")[2].split("-")


def _as_rgb(path):
    Image.new("RGB", (SIDE, SIDE)).save(path)


def _as_smaller(path):
    with Image.open(path) as labels:
        small = labels.crop((0, 0, SIDE, SIDE - 10))
    small.save(path)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (lambda path: path.unlink(), "mask_missing"),
        (_cut_in_half, "mask_invalid"),
        (lambda path: path.write_bytes(b"GIF89a"), "mask_invalid"),
        (_as_rgb, "mask_invalid"),
        (lambda path: Image.new("P", (SIDE, SIDE)).save(path), "mask_empty"),
        (_as_smaller, "mask_mismatch"),
    ],
)
def test_a_bad_palette_mask_costs_the_pairs_of_its_frame_alone(palette_folder, copy_of, action, reason):
    folder = copy_of(palette_folder)
    before = {entry.pair_id: entry for entry in videos(folder).build(units=videos(folder).units[:1])}
    chosen = next(iter(entry for entry in before.values() if isinstance(entry, Pair)))
    start = _frames(chosen)[0]
    video = chosen.pair_id.split("/")[1]
    action(folder / "Annotations" / video / f"{start}.png")
    data = videos(folder)
    after = {entry.pair_id: entry for entry in data.build(units=data.units[:1])}
    assert set(after) == set(before)
    for name, entry in after.items():
        if start not in name.rpartition("/")[2]:
            assert type(entry) is type(before[name])
        else:
            assert isinstance(entry, RefusedPair)
    assert after[chosen.pair_id].reason == reason
    assert start in after[chosen.pair_id].message


def test_a_mask_that_claims_to_be_huge_is_not_made(instances_folder, copy_of, edit):
    folder = copy_of(instances_folder)

    def inflate(content):
        for video in content["videos"]:
            video.update(width=10**6, height=10**6)
        for row in content["annotations"]:
            row["segmentations"] = [s and {"size": [10**6, 10**6], "counts": [10**12]} for s in row["segmentations"]]

    edit(folder / "instances.json", inflate)
    pairs, refused = split(videos(folder).build(range(1)))
    assert not pairs
    assert {entry.reason for entry in refused} == {"picture_too_large"}


def test_a_store_that_fails_refuses_by_name(coco_folder):
    data = coco(coco_folder)

    def read(uri):
        raise PermissionError(13, "no")

    built = list(build_unit(data.units[0], range(1), CONFIG, read))
    assert [entry.reason for entry in built] == ["storage_error"]


def test_ranks_beyond_the_candidates_give_nothing(coco_folder):
    data = coco(coco_folder)
    assert data.build(range(4, 9)) == []
    assert data.build(range(2, 2)) == []


@pytest.mark.slow
def test_s3_gives_what_a_folder_gives(s3_server, s3_folder, coco_folder, instances_folder, palette_folder):
    locations = Locations(storage_options=s3_server.storage_options)
    for folder, make in (
        (coco_folder, CocoReader),
        (instances_folder, YoutubeVisReader),
        (palette_folder, YoutubeVisReader),
    ):
        _upload(folder, f"{s3_folder}/{folder.name}", locations)
        uri = f"{s3_folder}/{folder.name}"
        reader = make(uri, "train", locations) if make is CocoReader else make(uri, locations)
        selection = CONFIG.coco if make is CocoReader else CONFIG.youtube_vis
        far, near = Data(reader, selection), coco(folder) if make is CocoReader else videos(folder)
        assert [u.group_id for u in far.units] == [u.group_id for u in near.units]
        assert reader.fingerprint() == pickle.loads(pickle.dumps(reader)).fingerprint()
        built = split(far.build(range(1), units=far.units[:4]))[0]
        moved = [dataclasses.replace(p, target_uri=p.target_uri.replace(uri, str(folder))) for p in built]
        assert [digest(p) for p in moved] == [digest(p) for p in split(near.build(range(1), units=near.units[:4]))[0]]
        assert len(built) >= 3


def _upload(folder, uri, locations):
    from tasks.storage.locations import locate

    target = locate(uri)
    locations.filesystem(target).put(f"{folder}/", target.path, recursive=True)


def test_units_are_small_and_plain(coco_folder):
    unit = coco(coco_folder).units[0]
    assert isinstance(unit, Unit)
    assert json.loads(unit.payload)["image_id"] == unit.group_id.removeprefix("coco/")
