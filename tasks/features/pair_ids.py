"""The ids of what a pair needs: its subject, its target picture and its text."""

import hashlib
import json
from collections.abc import Sequence

import pyarrow as pa

from tasks.features.identity import picture_id, subject_id, text_id
from tasks.features.ownership import Kind

ID_COLUMNS = (
    "subject_sha256", "subject_class", "target_sha256", "target_source_sha256", "target_crop", "caption", "size_px",
)  # fmt: skip
"""The columns of a pair that its ids are made of."""


def find_ids(rows: pa.Table | pa.RecordBatch) -> dict[Kind, list[str]]:
    """One id per row and kind, 32 hex digits each. rows: at least ID_COLUMNS of PAIRS_SCHEMA."""
    values = {name: rows.column(name).to_pylist() for name in ID_COLUMNS}
    subjects = zip(values["subject_sha256"], values["subject_class"], strict=True)
    targets = zip(
        *(values[f"target_{name}"] for name in ("sha256", "source_sha256", "crop")), values["size_px"], strict=True
    )
    return {
        "subjects": [subject_id(sha256, name) for sha256, name in subjects],
        "targets": [
            _reference_id(source, crop, size) if sha256 is None else picture_id(sha256)
            for sha256, source, crop, size in targets
        ],
        "texts": [text_id(caption) for caption in values["caption"]],
    }


def _reference_id(source_sha256: str, crop: Sequence[float], size_px: int) -> str:
    """The id of a target that is a part of another picture, whose bytes have this checksum, wherever they lie."""
    return picture_id(hashlib.sha256(json.dumps([source_sha256, list(crop), size_px]).encode()).hexdigest())
