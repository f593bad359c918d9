"""Finished sets of pairs, written without data sets: every value of a row can be chosen."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tasks.pairs.layout import pairs_path, shard_name, to_parquet
from tasks.pairs.manifest import PairsManifest
from tasks.pairs.schema import PAIRS_SCHEMA
from tasks.sharding import ShardReport, store_file
from tasks.storage import Locations, OutputFolder

SIZE_PX = 32
CLASSES = ("cup", "shoe", "chair", "lamp", "dog")
PLACES = ("beach", "snow", "table", "forest", "desert", "studio", "wall")

Row = dict[str, Any]


def make_picture(key: str, size_px: int = SIZE_PX) -> Image.Image:
    """A smooth picture, another one for every key."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)


def make_mask(key: str, size_px: int = SIZE_PX) -> Image.Image:
    """A box, 255 inside, another one for every key."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"mask {key}".encode()).digest()[:8]))
    values = np.zeros((size_px, size_px), np.uint8)
    left, top = rng.integers(0, size_px // 2, 2)
    values[top : top + size_px // 3, left : left + size_px // 4] = 255
    return Image.fromarray(values)


def to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def make_row(
    index: int,
    *,
    subject: str | None = None,
    target: str | None = None,
    subject_class: str | None = None,
    caption: str | None = None,
    size_px: int = SIZE_PX,
    **changes: Any,
) -> Row:
    """One row of PAIRS_SCHEMA. subject, target: keys of pictures, by default those of this pair alone."""
    name, place = CLASSES[index % len(CLASSES)], PLACES[index % len(PLACES)]
    subject, target = subject or f"subject {index}", target or f"target {index}"
    pictures = {
        "subject": to_png(make_picture(subject, size_px)),
        "subject_mask": to_png(make_mask(subject, size_px)),
        "target": to_png(make_picture(target, size_px)),
    }
    return {
        "pair_id": f"coco/train/{index:06d}/1",
        "source": "coco",
        "group_id": f"coco/train/{index:06d}",
        "subject_image_id": f"train/{index}",
        "target_image_id": f"train/{index}",
        "subject_class": subject_class or name,
        "caption": caption or f"a photo of the {name} in {place} {index}",
        **pictures,
        "subject_format": "png",
        "subject_sha256": hashlib.sha256(pictures["subject"]).hexdigest(),
        "mask_sha256": hashlib.sha256(pictures["subject_mask"]).hexdigest(),
        "target_format": "png",
        "target_sha256": hashlib.sha256(pictures["target"]).hexdigest(),
        "target_uri": "/nowhere.png",
        "target_source_sha256": hashlib.sha256(b"nowhere").hexdigest(),
        "target_crop": [0.0, 0.0, float(size_px), float(size_px)],
        "subject_box": [1.0, 2.0, 3.0, 4.0],
        "target_box": [1.0, 2.0, 3.0, 4.0],
        "flipped": False,
        "mask_share": 0.25,
        "frame_distance": None,
        "size_px": size_px,
        **changes,
    }


def by_reference(row: Row, target_uri: str, crop: Sequence[float], source: bytes | None = None) -> Row:
    """The row with its target as a part of another picture, whose file is read unless its bytes are given."""
    absent = dict.fromkeys(("target", "target_format", "target_sha256"))
    data = Path(target_uri).read_bytes() if source is None else source
    digest = hashlib.sha256(data).hexdigest()
    return {**row, **absent, "target_uri": target_uri, "target_source_sha256": digest, "target_crop": list(crop)}


def write_pairs(
    uri: str,
    rows: Sequence[Row],
    *,
    pairs_per_shard: int = 4,
    rows_per_group: int = 3,
    locations: Locations | None = None,
) -> OutputFolder:
    """A finished set of these pairs, in this order."""
    output, reports = OutputFolder(uri, locations), []
    for index, start in enumerate(range(0, len(rows), pairs_per_shard)):
        inside = list(rows[start : start + pairs_per_shard])
        groups = [
            pa.Table.from_pylist(inside[at : at + rows_per_group], PAIRS_SCHEMA)
            for at in range(0, len(inside), rows_per_group)
        ]
        shard = shard_name(0, index)
        file = store_file(output, pairs_path(shard), to_parquet(groups, PAIRS_SCHEMA, {}), len(inside))
        reports.append(ShardReport(shard, len(inside), files=(file,)))
    PairsManifest("test", tuple(reports)).store(output)
    return output
