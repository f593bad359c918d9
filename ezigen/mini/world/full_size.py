"""Annotation files of the real data sets' size, without pictures.

COCO 2014's training split has 82,783 pictures, 604,907 objects and 414,113 captions; YouTube-VIS 2019's 2,238 videos
and about 62,000 frames. The files are written with polygons and run lengths like theirs.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ezigen.mini.world.masks import run_lengths

NUM_IMAGES, NUM_OBJECTS, NUM_CAPTIONS = 82_783, 604_907, 414_113
NUM_VIDEOS, NUM_FRAMES, NUM_TRACKS = 2_238, 62_000, 3_774
COCO_INSTANCES, INSTANCES, META = "annotations/instances_train2014.json", "instances.json", "meta.json"

_NUM_SHAPES = 500


def write_coco(folder: Path, share: float = 1.0) -> None:
    """`share` of COCO's training split, without pictures: no reader of annotations opens one."""
    (folder / "train2014").mkdir(parents=True)
    (folder / "annotations").mkdir()
    num_images, rng = max(1, int(NUM_IMAGES * share)), np.random.default_rng(0)
    images = (
        {"license": 5, "file_name": f"COCO_train2014_{n:012d}.jpg", "coco_url": f"http://images.example/{n:012d}.jpg",
         "height": 480, "width": 640, "date_captured": "2013-11-14 16:28:13", "id": n}
        for n in range(1, num_images + 1)
    )  # fmt: skip
    categories = [{"supercategory": "thing", "id": n, "name": f"class {n}"} for n in range(1, 91)]
    with (folder / COCO_INSTANCES).open("w") as file:
        file.write('{"info": {}, "images": [')
        _write_list(file, map(json.dumps, images))
        file.write('], "annotations": [')
        _write_list(file, _objects(rng, int(NUM_OBJECTS * share), num_images))
        file.write(f'], "categories": {json.dumps(categories)}}}')
    captions = (
        json.dumps({"image_id": n % num_images + 1, "id": n, "caption": f"A thing number {n} stands beside another. "})
        for n in range(int(NUM_CAPTIONS * share))
    )
    with (folder / "annotations/captions_train2014.json").open("w") as file:
        file.write('{"images": [], "annotations": [')
        _write_list(file, captions)
        file.write("]}")


def write_instances(folder: Path, share: float = 1.0) -> None:
    """`share` of YouTube-VIS's training split, run lengths in plain numbers as its first release has them."""
    (folder / "JPEGImages").mkdir(parents=True)
    rng = np.random.default_rng(1)
    lengths = _lengths(rng, share)
    videos = [
        {"id": n + 1, "width": 1280, "height": 720, "length": int(length),
         "file_names": [f"{n:010x}/{5 * i:05d}.jpg" for i in range(length)]}
        for n, length in enumerate(lengths)
    ]  # fmt: skip
    shapes = [json.dumps({"counts": run_lengths(_blob(rng, 720, 1280)), "size": [720, 1280]}) for _ in range(60)]
    with (folder / INSTANCES).open("w") as file:
        file.write(f'{{"videos": {json.dumps(videos)}, "annotations": [')
        _write_list(file, (_track(rng, n, lengths, shapes) for n in range(int(NUM_TRACKS * share))))
        file.write('], "categories": [{"id": 1, "name": "giant_panda"}]}')


def write_meta(folder: Path, share: float = 1.0) -> None:
    """The same videos in the layout of palettes: meta.json beside mask pictures, of which none is written."""
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    rng = np.random.default_rng(1)
    lengths = _lengths(rng, share)
    objects = np.bincount(np.arange(int(NUM_TRACKS * share)) % len(lengths), minlength=len(lengths))
    videos = {
        f"{n:010x}": {
            "objects": {
                str(value): {"category": "giant_panda", "frames": [f"{5 * i:05d}" for i in range(length)]}
                for value in range(1, count + 1)
            }
        }
        for n, (length, count) in enumerate(zip(lengths.tolist(), objects.tolist(), strict=True))
    }
    (folder / META).write_text(json.dumps({"videos": videos}))


def _lengths(rng: np.random.Generator, share: float) -> Any:
    """Frames by video."""
    num_videos = max(1, int(NUM_VIDEOS * share))
    return rng.multinomial(int(NUM_FRAMES * share), np.full(num_videos, 1 / num_videos))


def _objects(rng: np.random.Generator, num_objects: int, num_images: int) -> Iterator[str]:
    """Objects in no order of pictures; two of five below 32 x 32 px and one of eighty a crowd, as in COCO."""
    polygons = [json.dumps([_polygon(rng)]) for _ in range(_NUM_SHAPES)]
    crowds = [json.dumps({"counts": run_lengths(_blob(rng, 480, 640)), "size": [480, 640]}) for _ in range(20)]
    areas = np.exp(rng.normal(math.log(1700), 2.2, num_objects)).clip(20, 250_000)
    owners = rng.integers(1, num_images + 1, num_objects)
    for n in range(num_objects):
        is_crowd = n % 80 == 0
        shape = crowds[n % len(crowds)] if is_crowd else polygons[n % _NUM_SHAPES]
        yield (
            f'{{"segmentation": {shape}, "area": {areas[n]:.4f}, "iscrowd": {int(is_crowd)}, "image_id": {owners[n]}, '
            f'"bbox": [473.07, 395.93, 38.65, 28.67], "category_id": {n % 90 + 1}, "id": {n + 1}}}'
        )


def _polygon(rng: np.random.Generator) -> list[float]:
    """An outline of 20 to 60 points in a picture of 640 x 480 px, hundredths of a pixel."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(20, 60))))
    radii = rng.uniform(30, 100) * rng.uniform(0.8, 1.2, angles.size)
    points = np.stack([320 + radii * np.cos(angles), 240 + radii * np.sin(angles)], axis=1)
    return [round(value, 2) for value in points.ravel().tolist()]


def _blob(rng: np.random.Generator, height: int, width: int) -> Any:
    """A round mask with a ragged border."""
    y, x = np.mgrid[:height, :width]
    radius = height * rng.uniform(0.2, 0.4) + rng.normal(0, 2, (1, width))
    return (x - width / 2) ** 2 + (y - height / 2) ** 2 < radius**2


def _track(rng: np.random.Generator, number: int, lengths: Any, shapes: list[str]) -> str:
    video = number % len(lengths)
    masks = ["null" if rng.random() < 0.05 else shapes[int(rng.integers(len(shapes)))] for _ in range(lengths[video])]
    boxes = json.dumps([[100.0, 100.0, 400.0, 400.0]] * len(masks))
    return (
        f'{{"id": {number + 1}, "video_id": {video + 1}, "category_id": 1, "iscrowd": 0, "width": 1280, "height": 720, '
        f'"segmentations": [{", ".join(masks)}], "bboxes": {boxes}, "areas": {json.dumps([90_000] * len(masks))}}}'
    )


def _write_list(file: Any, entries: Iterator[str]) -> None:
    first = True
    for entry in entries:
        file.write(entry if first else ", " + entry)
        first = False
