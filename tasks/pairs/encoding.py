"""One pair as a row of PAIRS_SCHEMA: its pictures as bytes, each with its checksum."""

import hashlib
import io
from typing import Any

from PIL import Image

from ezigen.config import PairConfig
from tasks.datasets.drawing import Pair

_PNG_LEVEL = 4
"""Two thirds of the time of the usual 6, for pictures that are 2 % larger."""


def encode_pair(pair: Pair, config: PairConfig) -> dict[str, Any]:
    """The row; the same bytes for the same pair and settings."""
    pictures = pair.pictures
    subject = encode_picture(pictures.subject, config)
    mask = encode_mask(pictures.subject_mask)
    embedded = config.targets == "embed"
    target = encode_picture(pictures.target, config) if embedded else None
    return {
        "pair_id": pair.pair_id,
        "source": pair.source,
        "group_id": pair.group_id,
        "subject_image_id": pair.subject_image_id,
        "target_image_id": pair.target_image_id,
        "subject_class": pair.subject_class,
        "caption": pair.caption,
        "subject": subject,
        "subject_format": config.picture_format,
        "subject_sha256": _sha256(subject),
        "subject_mask": mask,
        "mask_sha256": _sha256(mask),
        "target": target,
        "target_format": config.picture_format if embedded else None,
        "target_sha256": _sha256(target) if target is not None else None,
        "target_uri": pair.target_uri,
        "target_source_sha256": pair.target_source_sha256,
        "target_crop": pictures.target_crop.to_list(),
        "subject_box": pictures.subject_box.to_list(),
        "target_box": pictures.target_box.to_list(),
        "flipped": pictures.flipped,
        "mask_share": pair.mask_share,
        "frame_distance": pair.frame_distance,
        "size_px": config.size_px,
    }


def encode_picture(image: Image.Image, config: PairConfig) -> bytes:
    """JPEG with full colour resolution, or PNG."""
    buffer = io.BytesIO()
    if config.picture_format == "jpeg":
        image.save(buffer, "JPEG", quality=config.jpeg_quality, subsampling=0)
    else:
        image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def encode_mask(mask: Image.Image) -> bytes:
    """PNG of 0 and 255."""
    buffer = io.BytesIO()
    mask.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
