"""The world as COCO 2014: pictures with one to six products, instances (polygons and run lengths) and captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from ezigen.mini.world.captions import PHRASES, describe
from ezigen.mini.world.compose import Composer, Pixels, Pose, place
from ezigen.mini.world.masks import Mask, bounding_box, to_polygons, to_rle
from ezigen.mini.world.products import Variant
from ezigen.mini.world.scenes import SCENE_NAMES

SPLITS = ("train2014", "val2014")


def crowd_scene(
    composer: Composer, rng: Generator, scene: str, num_products: int
) -> tuple[Pixels, list[tuple[Variant, Mask]]]:
    """A picture with several products, later ones in front, and the visible mask of each (those quite hidden are
    left out).
    """
    picture = composer.background(rng, scene).astype(np.float32)
    seen: list[tuple[Variant, Mask]] = []
    for number in range(num_products):
        size = float(rng.uniform(0.3, 0.7) / num_products**0.4)
        x = (number + 0.5) / num_products + float(rng.normal(0, 0.04))
        pose = Pose(size, x, float(rng.uniform(0.7, 0.96)), float(rng.normal(0, 6)), bool(rng.random() < 0.5), 1.0)
        variant = composer.draw_variant(rng)
        layer = place(variant.pixels, pose, composer.side)
        picture = picture * (1 - layer[..., 3:]) + 255 * layer[..., :3]
        front = layer[..., 3] > 0.5
        seen = [(v, mask & ~front) for v, mask in seen] + [(variant, front)]
    return picture.round().clip(0, 255).astype(np.uint8), [(v, mask) for v, mask in seen if mask.sum() >= 16]


def annotation(number: int, image_id: int, category_id: int, mask: Mask) -> dict[str, Any]:
    """One instance: polygons mostly, every third one plain run lengths, as COCO has them for groups."""
    segmentation: Any = to_rle(mask, compressed=False) if number % 3 == 2 else to_polygons(mask)
    return {
        "id": number, "image_id": image_id, "category_id": category_id, "segmentation": segmentation,
        "area": float(mask.sum()), "bbox": bounding_box(mask), "iscrowd": int(number % 15 == 14),
    }  # fmt: skip


def captions_of(rng: Generator, seen: list[tuple[Variant, Mask]], scene: str) -> list[str]:
    """Five captions of a picture, of different lengths."""
    largest = max(seen, key=lambda item: int(item[1].sum()))[0]
    name, phrases = largest.product.name, PHRASES[scene]
    others = " and ".join(f"a {v.product.name}" for v, _ in seen)
    texts = [describe(name, scene, None, i) for i in range(len(phrases))]
    return [*texts, describe(name, scene, largest.hue_word), f"{others} {phrases[int(rng.integers(len(phrases)))]}"]


def write_split(
    composer: Composer, folder: Path, split: str, num_images: int, categories: dict[str, int], seed: int
) -> None:
    """Write one split: pictures, `instances_<split>.json`, `captions_<split>.json`."""
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True, exist_ok=True)
    for image_id in range(1, num_images + 1):
        scene = SCENE_NAMES[int(rng.integers(len(SCENE_NAMES)))]
        pixels, seen = crowd_scene(composer, rng, scene, int(rng.integers(1, 7)))
        file_name = f"COCO_{split}_{image_id:012d}.jpg"
        Image.fromarray(pixels).save(folder / split / file_name, quality=92)
        images.append({"id": image_id, "file_name": file_name, "width": composer.side, "height": composer.side})
        for variant, mask in seen:
            instances.append(annotation(len(instances) + 1, image_id, categories[variant.product.subject_class], mask))
        for text in captions_of(rng, seen, scene):
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": text})
    listed = [{"id": number, "name": name, "supercategory": "product"} for name, number in categories.items()]
    annotations = folder / "annotations"
    annotations.mkdir(exist_ok=True)
    (annotations / f"instances_{split}.json").write_text(
        json.dumps({"images": images, "annotations": instances, "categories": listed})
    )
    (annotations / f"captions_{split}.json").write_text(json.dumps({"images": images, "annotations": captions}))


def write_coco(composer: Composer, folder: Path, num_images: int, seed: int = 0) -> None:
    """Write `num_images` training pictures and a quarter as many for validation in COCO 2014's layout."""
    classes = sorted({variant.product.subject_class for variant in composer.variants})
    categories = {name: number for number, name in enumerate(classes, 1)}
    write_split(composer, folder, "train2014", num_images, categories, seed)
    write_split(composer, folder, "val2014", max(1, num_images // 4), categories, seed)
