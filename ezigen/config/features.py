"""What is computed once from training pairs, and how it is stored."""

from typing import Literal

from pydantic import Field

from ezigen.config.base import Config


class FeatureInputs(Config):
    """The pairs, the feature store, and how much may be written."""

    pairs_uri: str = Field(min_length=1, description="Folder or s3:// prefix that build_pairs wrote.")
    output_uri: str = Field(
        min_length=1, description="Folder or s3:// prefix of the feature store. Running again continues there."
    )
    max_gib: float = Field(
        default=0.0,
        ge=0.0,
        description="A store that would become larger is refused before anything is written, and a run ends before "
        "its next shards would pass it; with a larger one it continues. 0 sets no limit.",
    )
    verify: bool = Field(
        default=False,
        description="Read every stored shard and compare checksums; damaged ones are made again. Without it only sizes "
        "are compared.",
    )
    if_busy: Literal["refuse", "wait"] = Field(
        default="refuse",
        description="What to do when another run holds the store: refuse at once, or wait for it to end.",
    )
    storage_block: str = Field(
        default="",
        description="Name of a Prefect block of type ezigen-s3 with the endpoint and keys of an S3 store; empty: "
        "the standard AWS variables.",
    )


class FeatureConfig(Config):
    """What is stored of every subject, target and text. A changed value makes another store."""

    policy: Literal["features", "latents"] = Field(
        default="features",
        description="features stores the UNet's tokens of every subject; latents stores the subject's latent only, and "
        "training computes the tokens again.",
    )
    dtype: Literal["fp16", "bf16", "fp8"] = Field(
        default="fp16", description="Precision of stored tokens; fp8 is scaled per token."
    )
    tokens: Literal["all", "foreground"] = Field(
        default="all", description="foreground leaves out tokens that the subject's mask does not touch."
    )
    t_sub: int = Field(
        default=1,
        ge=0,
        le=999,
        description="Timestep at which the subject is encoded (Section 3.1; Table 4 varies it).",
    )
    text_embeddings: bool = Field(
        default=True, description="Store text embeddings beside the token ids (158 KB per text for SD2.1-base)."
    )
    row_group_mib: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Size of row groups of subjects; 0 gives every subject a row group of its own, which one request "
        "reads.",
    )
    batch_size: int = Field(default=8, ge=1, le=256, description="Pictures that a worker encodes together.")
