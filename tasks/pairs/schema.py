"""The columns of stored pairs, refusals and planned units."""

import pyarrow as pa

_BOX = pa.list_(pa.float64(), 4)

PAIRS_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("subject_image_id", pa.string(), nullable=False),
        pa.field("target_image_id", pa.string(), nullable=False),
        pa.field("subject_class", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("subject", pa.large_binary(), nullable=False),
        pa.field("subject_format", pa.string(), nullable=False),
        pa.field("subject_sha256", pa.string(), nullable=False),
        pa.field("subject_mask", pa.binary(), nullable=False),
        pa.field("mask_sha256", pa.string(), nullable=False),
        pa.field("target", pa.large_binary()),
        pa.field("target_format", pa.string()),
        pa.field("target_sha256", pa.string()),
        pa.field("target_uri", pa.string(), nullable=False),
        pa.field("target_source_sha256", pa.string(), nullable=False),
        pa.field("target_crop", _BOX, nullable=False),
        pa.field("subject_box", _BOX, nullable=False),
        pa.field("target_box", _BOX, nullable=False),
        pa.field("flipped", pa.bool_(), nullable=False),
        pa.field("mask_share", pa.float64(), nullable=False),
        pa.field("frame_distance", pa.int32()),
        pa.field("size_px", pa.int32(), nullable=False),
    ]
)
"""One row per pair, sorted by pair_id within a shard. Masks are PNG, 255 = subject; boxes are x, y, width, height:
target_crop and subject_box in pixels of the source picture, target_box in pixels of the stored target. `target` is null
where targets are stored by reference (target_uri and target_crop); target_source_sha256 is that of the file there."""

REFUSALS_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("subject_class", pa.string()),
    ]
)
"""One row per refused candidate, sorted by pair_id within a shard."""
