"""The world as video: one or two products moving through a scene, in both layouts of YouTube-VIS.

(a) `instances.json` with one run-length mask or null per frame beside `JPEGImages/<video>/<frame>.jpg`;
(b) `meta.json` with palette PNG masks `Annotations/<video>/<frame>.png` beside the same frames.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from ezigen.mini.world.compose import Composer, Pixels, Pose, place
from ezigen.mini.world.masks import Mask, bounding_box, to_rle
from ezigen.mini.world.products import Variant
from ezigen.mini.world.scenes import SCENE_NAMES

PALETTE = (0, 0, 0, 236, 95, 103, 249, 145, 87, 250, 200, 99)


@dataclass(frozen=True)
class Video:
    """Frames `h x w x 3` with, per product, one visible mask per frame (None where it is out of sight)."""

    name: str
    frames: list[Pixels]
    variants: list[Variant]
    masks: list[list[Mask | None]]


def draw_path(rng: Generator, num_frames: int) -> list[Pose]:
    """A smooth way through the frame; about one in four leaves it at the end."""
    start, end = float(rng.uniform(0.2, 0.4)), float(rng.choice([0.7, 0.8, 1.0, 1.5]))
    if rng.random() < 0.5:
        start, end = 1 - start, 1 - end
    size, growth = float(rng.uniform(0.3, 0.5)), float(rng.uniform(0.8, 1.3))
    foot, mirrored = float(rng.uniform(0.7, 0.95)), bool(rng.random() < 0.5)
    poses = []
    for share in np.linspace(0, 1, num_frames).tolist():
        bounce = 0.04 * abs(np.sin(6 * share))
        poses.append(
            Pose(
                size * growth**share, start + (end - start) * share, foot - bounce, 8 * np.sin(5 * share), mirrored, 1.0
            )
        )
    return poses


def draw_video(composer: Composer, rng: Generator, name: str, num_frames: int) -> Video:
    """One video of one or two products."""
    background = composer.background(rng, SCENE_NAMES[int(rng.integers(len(SCENE_NAMES)))]).astype(np.float32)
    variants = [composer.draw_variant(rng) for _ in range(int(rng.integers(1, 3)))]
    paths = [draw_path(rng, num_frames) for _ in variants]
    frames: list[Pixels] = []
    masks: list[list[Mask | None]] = [[] for _ in variants]
    for number in range(num_frames):
        picture, visible = background, list[Mask]()
        for variant, path in zip(variants, paths, strict=True):
            layer = place(variant.pixels, path[number], composer.side)
            picture = picture * (1 - layer[..., 3:]) + 255 * layer[..., :3]
            visible = [mask & ~(layer[..., 3] > 0.5) for mask in visible] + [layer[..., 3] > 0.5]
        frames.append(picture.round().clip(0, 255).astype(np.uint8))
        for known, mask in zip(masks, visible, strict=True):
            known.append(mask if mask.sum() >= 16 else None)
    return Video(name, frames, variants, masks)


def write_frames(video: Video, folder: Path) -> list[str]:
    """Write the frames as JPEG; return their paths below `JPEGImages`."""
    target = folder / "JPEGImages" / video.name
    target.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(video.frames):
        Image.fromarray(frame).save(target / f"{number:05d}.jpg", quality=92)
    return [f"{video.name}/{number:05d}.jpg" for number in range(len(video.frames))]


def instance_rows(video: Video, video_id: int, categories: dict[str, int]) -> list[dict[str, Any]]:
    """The annotations of layout (a) of one video, without ids."""
    rows = []
    for variant, masks in zip(video.variants, video.masks, strict=True):
        rows.append({
            "video_id": video_id, "category_id": categories[variant.product.subject_class], "iscrowd": 0,
            "segmentations": [None if m is None else to_rle(m, compressed=True) for m in masks],
            "bboxes": [None if m is None else bounding_box(m) for m in masks],
            "areas": [None if m is None else int(m.sum()) for m in masks],
            "width": video.frames[0].shape[1], "height": video.frames[0].shape[0],
        })  # fmt: skip
    return rows


def write_instances(composer: Composer, folder: Path, num_videos: int, num_frames: int = 12, seed: int = 0) -> None:
    """Write layout (a)."""
    rng = np.random.default_rng((seed, 11))
    names = sorted({variant.product.subject_class for variant in composer.variants})
    categories = {name: number for number, name in enumerate(names, 1)}
    videos, annotations = [], []
    for video_id in range(1, num_videos + 1):
        video = draw_video(composer, rng, f"{video_id:010x}", num_frames)
        size = {"width": composer.side, "height": composer.side, "length": num_frames}
        videos.append({"id": video_id, "file_names": write_frames(video, folder)} | size)
        annotations += instance_rows(video, video_id, categories)
    listed = [{"id": number, "name": name, "supercategory": "product"} for name, number in categories.items()]
    numbered = [{"id": number} | row for number, row in enumerate(annotations, 1)]
    (folder / "instances.json").write_text(
        json.dumps({"videos": videos, "annotations": numbered, "categories": listed})
    )


def write_palette_masks(video: Video, folder: Path) -> dict[str, Any]:
    """Write the palette masks of one video (value = object number); return its entry of `meta.json`."""
    target = folder / "Annotations" / video.name
    target.mkdir(parents=True, exist_ok=True)
    for number in range(len(video.frames)):
        labels = np.zeros(video.frames[0].shape[:2], np.uint8)
        for value, masks in enumerate(video.masks, 1):
            mask = masks[number]
            labels[mask if mask is not None else np.zeros_like(labels, bool)] = value
        picture = Image.fromarray(labels, "P")
        picture.putpalette(PALETTE)
        picture.save(target / f"{number:05d}.png")
    seen = [[f"{i:05d}" for i, mask in enumerate(masks) if mask is not None] for masks in video.masks]
    pairs = enumerate(zip(video.variants, seen, strict=True), 1)
    return {
        "objects": {str(value): {"category": v.product.subject_class, "frames": frames} for value, (v, frames) in pairs}
    }


def write_palette(composer: Composer, folder: Path, num_videos: int, num_frames: int = 12, seed: int = 0) -> None:
    """Write layout (b)."""
    rng = np.random.default_rng((seed, 12))
    entries = {}
    for number in range(1, num_videos + 1):
        video = draw_video(composer, rng, f"{number:010x}", num_frames)
        write_frames(video, folder)
        entries[video.name] = write_palette_masks(video, folder)
    (folder / "meta.json").write_text(json.dumps({"videos": entries}))
