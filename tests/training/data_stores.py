"""Small feature stores whose pairs, groups and sources can be chosen; numbers are those of tests.features.stores."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from tasks.features import FeatureShardWriter, ShardFiles, text_id, write_index, write_store
from tasks.storage import Locations, OutputFolder
from tests.features.stores import (
    SHAPE,
    Written,
    embeddings_of,
    identity_of,
    mask_of,
    picture_key,
    random_features,
    subject_class,
    subject_key,
    target_of,
    text,
)


@dataclass(frozen=True)
class StoredPair:
    """A pair by the numbers of its subject, target and text."""

    pair_id: str
    subject: int
    target: int
    text: int

    @property
    def source(self) -> str:
        return self.pair_id.partition("/")[0]


def coco_pairs(num_pictures: int, *, per_picture: int = 1) -> list[StoredPair]:
    """Pictures with some subjects each, which share the picture and its caption."""
    return [
        StoredPair(f"coco/train/{picture:04d}/{index}", per_picture * picture + index, 500 + picture, 500 + picture)
        for picture in range(num_pictures)
        for index in range(per_picture)
    ]


def video_pairs(num_videos: int, *, per_video: int = 1) -> list[StoredPair]:
    """Videos of one subject class each, with some pairs of frames."""
    return [
        StoredPair(f"youtube_vis/train/v{video}/{index}", number, number, 900)
        for video in range(num_videos)
        for index in range(per_video)
        for number in [1000 + per_video * video + index]
    ]


def write_store_of(
    root: Path | str,
    pairs: Sequence[StoredPair],
    *,
    per_shard: int = 7,
    row_group_mib: int = 0,
    lost_subjects: Collection[int] = (),
    locations: Locations | None = None,
    **config,
) -> Written:
    """A finished store of these pairs, in this order; what several shards need is stored by the first.

    lost_subjects: those that are not stored, though pairs show them.
    """
    output, identity = OutputFolder(str(root), locations), identity_of(**config)
    write_store(output, identity, row_group_mib=row_group_mib)
    seen: set[tuple[str, int]] = {("subject", number) for number in lost_subjects}
    shards = {}
    for index, start in enumerate(range(0, len(pairs), per_shard)):
        with FeatureShardWriter(output, identity, f"r0-{index:05d}", row_group_mib=row_group_mib) as writer:
            shards[f"r0-{index:05d}"] = _write_shard(writer, identity, pairs[start : start + per_shard], seen)
    write_index(output, identity, shards)
    return Written(output, identity, shards)


def _write_shard(writer, identity, pairs: Sequence[StoredPair], seen: set[tuple[str, int]]) -> ShardFiles:
    for pair in pairs:
        if _is_new(seen, "subject", pair.subject):
            _add_subject(writer, identity, pair.subject)
        if _is_new(seen, "target", pair.target):
            mean, variance = target_of(pair.target)
            writer.add_targets([picture_key(pair.target)], mean[None], variance[None])
        if _is_new(seen, "text", pair.text):
            embeddings = embeddings_of(pair.text)[None] if identity.text_embeddings else None
            token_ids = token_ids_of(pair.text)[None]
            writer.add_texts([text_id(text(pair.text))], [text(pair.text)], token_ids, embeddings)
    return writer.close(_samples(pairs))


def _add_subject(writer, identity, number: int) -> None:
    ids, classes = [subject_key(number)], [subject_class(number)]
    if identity.policy == "latents":
        writer.add_subject_latents(ids, classes, target_of(number)[0][None])
    else:
        writer.add_subjects(ids, classes, random_features(number, identity.blocks), [mask_of(number)])


def token_ids_of(number: int) -> torch.Tensor:
    return torch.arange(SHAPE.text_shape[0]) + 10 * number


def _is_new(seen: set[tuple[str, int]], kind: str, number: int) -> bool:
    if (kind, number) in seen:
        return False
    seen.add((kind, number))
    return True


def _samples(pairs: Sequence[StoredPair]) -> pa.Table:
    return pa.table(
        {
            "pair_id": pa.array([pair.pair_id for pair in pairs], pa.string()),
            "subject_id": pa.array([subject_key(pair.subject) for pair in pairs], pa.string()),
            "target_id": pa.array([picture_key(pair.target) for pair in pairs], pa.string()),
            "text_id": pa.array([text_id(text(pair.text)) for pair in pairs], pa.string()),
            "source": pa.array([pair.source for pair in pairs], pa.string()),
        }
    )
