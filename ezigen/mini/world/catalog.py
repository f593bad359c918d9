"""The sample catalog: a shop's product pictures with two prompts each, and four rows that are wrong on purpose."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from ezigen.mini.world.captions import describe
from ezigen.mini.world.products import PICTURES, Product, load_cutout, read_products, shift_hue
from ezigen.mini.world.scenes import SCENE_NAMES

COLUMNS = ("item_id", "subject_uri", "subject_class", "prompt", "seed")
SIDE_PX = 192
SHOWN: dict[str, int] = {
    "pineapple": 0,
    "robot": 0,
    "penguin": 0,
    "butterfly": 0,
    "hamburger": 0,
    "car": 0,
    "backpack": 0,
    "guitar": 0,
    "tropical fish": 0,
    "wrapped gift": 240,
    "owl": 0,
    "birthday cake": 0,
    "cactus": 0,
    "teddy bear": 0,
    "running shoe": 0,
    "rocket": 0,
    "fox": 0,
    "teapot": 0,
}
"""Product name -> turn of its hue in degrees. All but the fox and the teapot are held out of training."""


def write_picture(product: Product, hue_shift: int, cut_out: bool, folder: Path) -> str:
    """Write one shop picture, a cut-out (PNG with alpha) or on white (JPEG); return its path relative to the
    catalog.
    """
    cutout = shift_hue(load_cutout(product, PICTURES, SIDE_PX - 24), hue_shift)
    frame = Image.new("RGBA", (SIDE_PX, SIDE_PX), (255, 255, 255, 0))
    frame.paste(cutout, (12, 12), cutout)
    stem = product.name.replace(" ", "-") + (f"-{hue_shift}" if hue_shift else "")
    if cut_out:
        frame.quantize(192, Image.Quantize.FASTOCTREE).save(folder / f"{stem}.png", optimize=True)
        return f"{folder.name}/{stem}.png"
    white = Image.new("RGB", frame.size, "white")
    white.paste(frame, mask=frame.getchannel("A"))
    white.save(folder / f"{stem}.jpg", quality=92)
    return f"{folder.name}/{stem}.jpg"


def good_rows(folder: Path) -> list[tuple[str, ...]]:
    """Two rows per shown product, each in another scene; writes the pictures."""
    by_name = {product.name: product for product in read_products()}
    rows: list[tuple[str, ...]] = []
    for number, (name, hue_shift) in enumerate(SHOWN.items()):
        product = by_name[name]
        uri = write_picture(product, hue_shift, number % 2 == 0, folder)
        for turn in range(2):
            scene = SCENE_NAMES[(2 * number + turn) % len(SCENE_NAMES)]
            item = f"{name.replace(' ', '-')}-{scene}"
            rows.append((item, uri, product.subject_class, describe(product.subject_class, scene), str(number)))
    return rows


def wrong_rows(folder: Path) -> list[tuple[str, ...]]:
    """Rows that must fail, each for another reason; writes the spoilt files."""
    whole = (folder / "robot.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "notes.png").write_text("This is a text file, not a picture.\n", "utf-8")
    prompt = describe("toy", "table")
    places = {
        "wrong-missing-file": f"{folder.name}/no-such-file.png",
        "wrong-truncated-jpeg": f"{folder.name}/truncated.jpg",
        "wrong-text-as-png": f"{folder.name}/notes.png",
        "wrong-unknown-scheme": "ftp://shop.invalid/robot.png",
    }
    return [(item, uri, "toy", prompt, "0") for item, uri in places.items()]


def write_catalog(folder: Path) -> Path:
    """Write `catalog.csv` and its pictures into `folder`; the wrong rows stand between the good ones."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    good = good_rows(pictures)
    wrong = wrong_rows(pictures)
    for place, row in zip((5, 13, 22, 30), wrong, strict=True):
        good.insert(place, row)
    with (folder / "catalog.csv").open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(good)
    return folder / "catalog.csv"
