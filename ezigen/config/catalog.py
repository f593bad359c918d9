"""What a catalog run reads, writes and runs on."""

from typing import Literal

from pydantic import Field

from ezigen.config.base import Config
from ezigen.config.ray import RayConfig


class CatalogInputs(Config):
    """The catalog, the output folder, and what may be opened on the way."""

    catalog_uri: str = Field(
        min_length=1, description="Catalog of products: a .csv, .jsonl or .parquet file, in a folder or on s3://."
    )
    output_uri: str = Field(
        min_length=1,
        description="Folder or s3:// prefix for images, results and the report. Running again continues there.",
    )
    allowed_roots: list[str] = Field(
        default_factory=list,
        description="Folders and s3:// prefixes that the catalog's rows may read from. Empty: the catalog's own "
        "folder.",
    )
    features_uri: str = Field(
        default="",
        description="Feature store whose subjects need not be encoded again: those of rows whose picture file and "
        "class are, byte for byte, a stored subject's. Empty: every subject is encoded, once per worker.",
    )
    retry_failed: bool = Field(default=False, description="Run items again whose last attempt failed.")
    limit: int = Field(default=0, ge=0, description="Do at most this many items of the missing ones; 0 does all.")
    max_failed_share: float = Field(
        default=0.25,
        ge=0.0,
        le=1.0,
        description="The run ends as failed when more than this share of its items failed, after doing all others.",
    )
    if_busy: Literal["refuse", "wait"] = Field(
        default="refuse",
        description="What to do when another run holds the output: refuse at once, or wait for it to end.",
    )
    image_format: Literal["png", "jpeg", "webp"] = Field(
        default="png", description="How images are stored from now on; those that are there stay as they are."
    )
    image_quality: int = Field(default=90, ge=1, le=100, description="Of jpeg and webp; png loses nothing.")
    max_previews: int = Field(
        default=2000,
        ge=0,
        le=20_000,
        description="Items that keep a preview strip (subject, sketch, loops, result) for the report.",
    )
    max_picture_side_px: int = Field(
        default=16_384, ge=64, description="Subject pictures with a longer side are refused before decoding."
    )
    max_picture_pixels: int = Field(
        default=100_000_000, ge=4096, description="Subject pictures with more pixels are refused before decoding."
    )
    storage_block: str = Field(
        default="",
        description="Name of a Prefect block of type ezigen-s3 with the endpoint and keys of an S3 store; empty: "
        "the standard AWS variables.",
    )


MOST_SLOTS = {"cpu": 4, "cuda": 64}
"""Slots of a worker by device, when the number is not given: on a CPU more gain little, and only in long runs; on a GPU
as many as fit into its memory, and no more, so that a short run still spreads over several GPUs.
"""


class ClusterConfig(RayConfig):
    """The Ray cluster and the workers on it that make images."""

    num_slots: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Items that a worker denoises together; 0 is 4 on a CPU, and on a GPU up to 64, as its free memory "
        "allows at start.",
    )
    num_ahead: int = Field(
        default=8,
        ge=0,
        le=1024,
        description="Items that a worker holds beyond its slots: their pictures are read and their sketches drawn "
        "meanwhile.",
    )
    compile_unet: bool = Field(
        default=False,
        description="Compile the UNet for its few shapes (torch.compile): minutes at every worker's start, then faster "
        "steps. For long runs on GPUs; on a CPU it needs a C++ compiler. The last digits of pixels may differ.",
    )
    shard_size: int = Field(default=64, ge=1, le=100_000, description="Result rows per stored shard.")
    flush_interval_s: float = Field(
        default=15.0, gt=0.0, le=3600.0, description="Finished items wait at most this long for their result row."
    )
    item_timeout_s: float = Field(
        default=900.0,
        gt=0.0,
        le=86_400.0,
        description="A worker that finishes nothing for this long times its slots is ended; an item that takes longer "
        "than this alone is timed_out.",
    )
