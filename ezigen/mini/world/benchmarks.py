"""The world as the subject-driven benchmarks: DreamBench (subjects x prompts), DreamEditBench (subjects x source
pictures) and a stand-in for the one of people.

DreamBench keeps the original's layout: `dataset/<subject>/<number>.jpg` and `dataset/prompts_and_classes.txt`.
DreamEditBench has, per subject, pictures of the subject and source pictures that show another product with the mask of
what is to be replaced. `tasks.evaluation` reads them as it reads the real ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from ezigen.mini.world.captions import PHRASES, describe
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import Variant, make_variant, select_products
from ezigen.mini.world.scenes import SCENE_NAMES

PRODUCTS = (
    "pineapple",
    "penguin",
    "car",
    "butterfly",
    "hamburger",
    "guitar",
    "robot",
    "wrapped gift",
    "owl",
    "backpack",
    "tropical fish",
    "rocket",
)
"""Held-out products that figures are measured on."""

SIDE_PX = 64
SUBJECT_PICTURES = 4
PHRASES_PER_SCENE = 2
"""Prompts of the miniature DreamBench: one for every scene, then another one for every scene."""
CREATURES = ("animal", "bird", "sea animal", "insect")
IDENTITY_HUES = (0, 120, 240)


def make_composer(shifts: tuple[int, ...] = (0,), classes: tuple[str, ...] = ()) -> Composer:
    """PRODUCTS in these turns of the colour circle, as large as the embedded model draws; `classes`: of these alone."""
    products = [product for product in select_products(held_out=True) if product.name in PRODUCTS]
    chosen = [product for product in products if not classes or product.subject_class in classes]
    return Composer([make_variant(p, shift) for p in chosen for shift in shifts], SIDE_PX, num_backgrounds=8)


def folder_name(variant: Variant) -> str:
    """A folder name for a variant, for example `pineapple` or `pineapple_120`."""
    name = variant.product.name.replace(" ", "_")
    return name if variant.hue_shift == 0 else f"{name}_{variant.hue_shift}"


def write_subject(composer: Composer, rng: Generator, variant: Variant, folder: Path) -> None:
    """Pictures of one subject: the first on white, the others in scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(SUBJECT_PICTURES):
        scene = SCENE_NAMES[int(rng.integers(len(SCENE_NAMES)))] if number else None
        Image.fromarray(composer.compose(rng, variant, scene)[0]).save(folder / f"{number:02d}.jpg", quality=92)


def prompts_text(variants: list[Variant]) -> str:
    """`prompts_and_classes.txt`: a table of subjects and classes, then the prompt list, as the original writes them."""
    table = [f"{folder_name(v)},{v.product.subject_class}" for v in variants]
    phrases = [PHRASES[scene][number] for number in range(PHRASES_PER_SCENE) for scene in SCENE_NAMES]
    prompts = [f"'a {{0}} {{1}} {phrase}'.format(unique_token, class_token)," for phrase in phrases]
    return "\n".join(
        [
            "Classes",
            "subject_name,class",
            *table,
            "",
            "Prompts",
            "",
            "Object Prompts",
            "prompt_list = [",
            *prompts,
            "]",
            "",
        ]
    )


def write_dreambench(composer: Composer, folder: Path, num_subjects: int, seed: int = 0) -> None:
    """Write a DreamBench-like benchmark of the first `num_subjects` variants in their own colours."""
    rng = np.random.default_rng((seed, 21))
    variants = [v for v in composer.variants if v.hue_shift == 0][:num_subjects]
    for variant in variants:
        write_subject(composer, rng, variant, folder / "dataset" / folder_name(variant))
    (folder / "dataset" / "prompts_and_classes.txt").write_text(prompts_text(variants), "utf-8")


def write_sources(composer: Composer, rng: Generator, others: list[Variant], folder: Path, count: int) -> None:
    """Source pictures with other products in scenes, and masks of those products."""
    for name in ("source", "mask"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        other = others[int(rng.integers(len(others)))]
        pixels, mask = composer.compose(rng, other, SCENE_NAMES[number % len(SCENE_NAMES)])
        Image.fromarray(pixels).save(folder / "source" / f"{number:02d}.jpg", quality=92)
        Image.fromarray(np.where(mask > 127, 255, 0).astype(np.uint8)).save(folder / "mask" / f"{number:02d}.png")


def write_dreamedit(composer: Composer, folder: Path, num_subjects: int, num_sources: int = 10, seed: int = 0) -> None:
    """Write a DreamEditBench-like benchmark: `<subject>/{subject,source,mask}`, `subjects.json` with the classes and
    `prompts.json` with what each edit shall show.
    """
    rng = np.random.default_rng((seed, 22))
    variants = [v for v in composer.variants if v.hue_shift == 0][:num_subjects]
    for variant in variants:
        place = folder / folder_name(variant)
        write_subject(composer, rng, variant, place / "subject")
        others = [v for v in composer.variants if v.product != variant.product]
        write_sources(composer, rng, others, place, num_sources)
    prompts = [describe("{subject_class}", SCENE_NAMES[number % len(SCENE_NAMES)]) for number in range(num_sources)]
    names = [folder_name(variant) for variant in variants]
    write_json(folder / "subjects.json", {folder_name(v): v.product.subject_class for v in variants})
    write_json(
        folder / "prompts.json", {f"{name}/{n:02d}": prompt for name in names for n, prompt in enumerate(prompts)}
    )


def write_people(composer: Composer, folder: Path, seed: int = 0) -> None:
    """Write `<identity>/<number>.jpg`, `classes.json`, `prompts.txt`: an identity per variant, a prompt per scene."""
    rng = np.random.default_rng((seed, 23))
    for variant in composer.variants:
        write_subject(composer, rng, variant, folder / folder_name(variant))
    write_json(folder / "classes.json", {folder_name(v): v.product.subject_class for v in composer.variants})
    prompts = [describe("{subject_class}", scene) for scene in SCENE_NAMES]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", "utf-8")


def write_json(path: Path, values: dict[str, str]) -> None:
    """Write words by name."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
