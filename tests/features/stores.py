"""Small feature stores of random numbers for tests."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from ezigen.config import FeatureConfig
from ezigen.subject import SubjectFeatures
from tasks.features import (
    BlockLayout,
    EncodingCost,
    FeatureIdentity,
    FeatureShardWriter,
    ModelShape,
    ShardFiles,
    picture_id,
    subject_id,
    text_id,
    write_index,
    write_store,
)
from tasks.storage import OutputFolder

# Grids of 8, 4 and 2 cells a side, in an order that is neither the names' nor the sizes'.
BLOCKS = (
    BlockLayout("down_blocks.0.attentions.0.transformer_blocks.0", 64, 12),
    BlockLayout("up_blocks.1.attentions.0.transformer_blocks.0", 16, 20),
    BlockLayout("mid_block.attentions.0.transformer_blocks.0", 4, 40),
)
SHAPE = ModelShape(64, (4, 8, 8), (7, 6), BLOCKS, EncodingCost(3e9, 2e9, 1e9))

SD21_BLOCKS = tuple(
    BlockLayout(f"{place}.attentions.{index}.transformer_blocks.0", num_tokens, num_channels)
    for place, count, num_tokens, num_channels in [
        ("down_blocks.0", 2, 4096, 320),
        ("down_blocks.1", 2, 1024, 640),
        ("down_blocks.2", 2, 256, 1280),
        ("up_blocks.1", 3, 256, 1280),
        ("up_blocks.2", 3, 1024, 640),
        ("up_blocks.3", 3, 4096, 320),
        ("mid_block", 1, 64, 1280),
    ]
    for index in range(count)
)
SD21_COST = EncodingCost(vae_flop=1.1167e12, unet_flop=0.80426e12, text_flop=0.04513e12)
SD21 = ModelShape(512, (4, 64, 64), (77, 1024), SD21_BLOCKS, SD21_COST)


def sha256(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def subject_key(number: int) -> str:
    return subject_id(sha256(number), subject_class(number))


def picture_key(number: int) -> str:
    return picture_id(sha256(number))


def text(number: int) -> str:
    return f"a photo of a täst {number}"


def subject_class(number: int) -> str:
    return "cup" + "é" * (number % 3)


def identity_of(shape: ModelShape = SHAPE, **config) -> FeatureIdentity:
    return FeatureIdentity.of("f" * 32, shape, FeatureConfig(**config), network_dtype="fp32")


def random_features(number: int, blocks=BLOCKS, count: int = 1) -> SubjectFeatures:
    generator = torch.Generator().manual_seed(number)
    return SubjectFeatures(
        {b.name: 3 * torch.randn(count, b.num_tokens, b.num_channels, generator=generator) for b in blocks}
    )


def mask_of(number: int) -> torch.Tensor | None:
    """Subjects 0, 4, 8 ... have none; the others a rectangle that grows with the number."""
    if number % 4 == 0:
        return None
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[5 : 9 + 7 * (number % 4), 17 : 30 + 5 * (number % 4)] = 255
    return mask


def target_of(number: int, shape: tuple[int, ...] = SHAPE.latent_shape) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + number)
    mean = torch.randn(shape, generator=generator)
    return mean, torch.rand(shape, generator=generator) * 1e-9


def embeddings_of(number: int, shape: tuple[int, ...] = SHAPE.text_shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2000 + number))


@dataclass(frozen=True)
class Written:
    output: OutputFolder
    identity: FeatureIdentity
    shards: dict[str, ShardFiles]


def write_shard(
    output: OutputFolder, identity: FeatureIdentity, shard: str, numbers: range, *, row_group_mib: int = 0
) -> ShardFiles:
    """Subjects, targets and texts of these numbers; a sample for each."""
    with FeatureShardWriter(output, identity, shard, row_group_mib=row_group_mib) as writer:
        for number in numbers:
            if identity.policy == "latents":
                latents = target_of(number, identity.latent_shape)[0][None]
                writer.add_subject_latents([subject_key(number)], [subject_class(number)], latents)
            else:
                features = random_features(number, identity.blocks)
                writer.add_subjects([subject_key(number)], [subject_class(number)], features, [mask_of(number)])
            mean, variance = target_of(number, identity.latent_shape)
            writer.add_targets([picture_key(number)], mean[None], variance[None])
            tokens = torch.full((1, identity.text_shape[0]), number)
            embeddings = embeddings_of(number, identity.text_shape)[None] if identity.text_embeddings else None
            writer.add_texts([text_id(text(number))], [text(number)], tokens, embeddings)
        return writer.close(samples_of(numbers))


def samples_of(numbers: range) -> pa.Table:
    return pa.table(
        {
            "pair_id": pa.array([f"coco/train/{number}" for number in numbers], pa.string()),
            "subject_id": pa.array([subject_key(number) for number in numbers], pa.string()),
            "target_id": pa.array([picture_key(number) for number in numbers], pa.string()),
            "text_id": pa.array([text_id(text(number)) for number in numbers], pa.string()),
            "source": pa.array(["coco" for _ in numbers], pa.string()),
        }
    )


def write_features(
    root: Path | str,
    *,
    shape: ModelShape = SHAPE,
    num_shards: int = 2,
    per_shard: int = 5,
    row_group_mib: int = 0,
    **config,
) -> Written:
    """A finished store whose subjects are numbered through."""
    output, identity = OutputFolder(str(root)), identity_of(shape, **config)
    write_store(output, identity, row_group_mib=row_group_mib)
    shards = {}
    for index in range(num_shards):
        name, numbers = f"r0-{index:05d}", range(index * per_shard, (index + 1) * per_shard)
        shards[name] = write_shard(output, identity, name, numbers, row_group_mib=row_group_mib)
    write_index(output, identity, shards)
    return Written(output, identity, shards)
