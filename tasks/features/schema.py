"""The tables of a feature store: their columns, and what each says about itself."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch

from tasks.features.identity import FeatureIdentity

SUBJECTS, LATENTS, TEXTS = "subjects", "latents", "texts"
TABLES = (SUBJECTS, LATENTS, TEXTS)
INDEX, SAMPLES = "index", "samples"
ID_COLUMNS = {SUBJECTS: "subject_id", LATENTS: "picture_id", TEXTS: "text_id"}
SAMPLE_COLUMNS = ("pair_id", "subject_id", "target_id", "text_id")

SUBJECT_CLASS, MASK, LATENT = "subject_class", "mask", "latent"
MEAN, VARIANCE = "mean", "variance"
TEXT, TOKEN_IDS, EMBEDDINGS, POOLED = "text", "token_ids", "embeddings", "pooled"
SCALE_SUFFIX = ".scale"

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "fp32": torch.float32,
    "int32": torch.int32,
}
LATENT_DTYPE = "fp16"
# A VAE's variance goes down to 1e-13, where fp16 has ended; of bf16's three digits noise needs none.
VARIANCE_DTYPE = "bf16"
EMBEDDING_DTYPE = "fp16"
SCALE_DTYPE = "fp32"

KIND_KEY, IDENTITY_KEY, STORE_KEY, FILES_KEY = b"ezigen.kind", b"ezigen.identity", b"ezigen.store", b"ezigen.files"


def table_schema(table: str, identity: FeatureIdentity) -> pa.Schema:
    """The schema of subjects, latents or texts: required columns only, the id first."""
    columns = {SUBJECTS: _subject_columns, LATENTS: _latent_columns, TEXTS: _text_columns}[table](identity)
    fields = [pa.field(ID_COLUMNS[table], pa.string(), nullable=False), *columns]
    return pa.schema(fields, metadata=file_metadata(table, identity))


def file_metadata(table: str, identity: FeatureIdentity) -> dict[bytes, bytes]:
    """What every file of a store says: its kind, the digest of its identity and the identity itself."""
    return {
        KIND_KEY: f"features.{table}".encode(),
        IDENTITY_KEY: identity.digest().encode(),
        STORE_KEY: json.dumps(identity.to_json(), sort_keys=True).encode(),
    }


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a packed tensor."""
    size = DTYPES[dtype].itemsize
    for length in shape:
        size *= length
    return int(size)


def describe_field(field: pa.Field) -> Mapping[str, Any]:
    """dtype, shape and, for tokens, block of a column, as its metadata say; -1 is a length that varies."""
    metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    described: dict[str, Any] = {"dtype": metadata["ezigen.dtype"], "shape": json.loads(metadata["ezigen.shape"])}
    return described | ({"block": metadata["ezigen.block"]} if "ezigen.block" in metadata else {})


def _subject_columns(identity: FeatureIdentity) -> list[pa.Field]:
    from tasks.features.foreground import finest_side

    columns = [pa.field(SUBJECT_CLASS, pa.string(), nullable=False)]
    if identity.policy == "latents":
        return [*columns, _tensor_field(LATENT, LATENT_DTYPE, identity.latent_shape)]
    foreground = identity.tokens == "foreground"
    if foreground:
        side = finest_side(identity.blocks)
        columns.append(_field(MASK, pa.binary(-(-side * side // 8)), dtype="bits", shape=(side, side)))
    for block in identity.blocks:
        length = -1 if foreground else block.num_tokens
        if identity.dtype == "fp8":
            columns.append(_tensor_field(block.name + SCALE_SUFFIX, SCALE_DTYPE, (length,), block=block.name))
        columns.append(_tensor_field(block.name, identity.dtype, (length, block.num_channels), block=block.name))
    return columns


def _latent_columns(identity: FeatureIdentity) -> list[pa.Field]:
    return [
        _tensor_field(MEAN, LATENT_DTYPE, identity.latent_shape),
        _tensor_field(VARIANCE, VARIANCE_DTYPE, identity.latent_shape),
    ]


def _text_columns(identity: FeatureIdentity) -> list[pa.Field]:
    columns = [
        pa.field(TEXT, pa.string(), nullable=False),
        _tensor_field(TOKEN_IDS, "int32", (identity.num_token_ids,)),
    ]
    if identity.text_embeddings:
        columns.append(_tensor_field(EMBEDDINGS, EMBEDDING_DTYPE, identity.text_shape))
        if identity.pooled_channels:
            columns.append(_tensor_field(POOLED, EMBEDDING_DTYPE, (identity.pooled_channels,)))
    return columns


def _tensor_field(name: str, dtype: str, shape: tuple[int, ...], *, block: str = "") -> pa.Field:
    kind = pa.large_binary() if -1 in shape else pa.binary(num_bytes(dtype, shape))
    return _field(name, kind, dtype=dtype, shape=shape, block=block)


def _field(name: str, kind: pa.DataType, *, dtype: str, shape: tuple[int, ...], block: str = "") -> pa.Field:
    metadata = {"ezigen.dtype": dtype, "ezigen.shape": json.dumps(shape)} | ({"ezigen.block": block} if block else {})
    return pa.field(name, kind, nullable=False, metadata=metadata)
