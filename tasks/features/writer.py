"""Writing one shard of a feature store, a subject at a time."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from torch import Tensor

from ezigen.subject import SubjectFeatures
from ezigen.subject.foreground import touched_cells
from tasks.features.foreground import finest_side, kept_tokens, pack_cells
from tasks.features.identity import FeatureIdentity
from tasks.features.index import INDEX_SCHEMA, is_id
from tasks.features.packing import PackedFeatures
from tasks.features.schema import (
    DTYPES,
    EMBEDDING_DTYPE,
    FILES_KEY,
    INDEX,
    LATENT_DTYPE,
    LATENTS,
    SAMPLE_COLUMNS,
    SAMPLES,
    SUBJECTS,
    TABLES,
    TEXTS,
    VARIANCE_DTYPE,
    file_metadata,
)
from tasks.features.table_writer import TableWriter, Value
from tasks.storage.filesystems import with_retries
from tasks.storage.folder import OutputFolder
from tasks.storage.stored_file import StoredFile


@dataclass(frozen=True)
class ShardFiles:
    """A finished shard: its name, its samples and its objects, the completion object last."""

    name: str
    rows: int
    files: tuple[StoredFile, ...]


class FeatureShardWriter:
    """Writes one shard; memory stays at one batch (or one row group), whatever the shard's size.

    Rows go to local temporary files; `close` stores them whole, samples/<shard>.parquet last. A writer that is left
    by an exception (`with`) or never closed stores nothing. Ids must be 32 hex digits, each once per table.
    """

    def __init__(self, output: OutputFolder, identity: FeatureIdentity, shard: str, *, row_group_mib: int = 0) -> None:
        self._output, self._identity, self._shard = output, identity, shard
        self._side = finest_side(identity.blocks) if identity.tokens == "foreground" else 0
        self._seen: set[tuple[str, str]] = set()
        self._tables: dict[str, TableWriter] = {}
        for table in TABLES:
            gathered = row_group_mib * 2**20 if table == SUBJECTS else 0
            self._tables[table] = TableWriter(output, identity, table, shard, row_group_bytes=gathered)

    def __enter__(self) -> "FeatureShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the temporary files of a shard that was not closed."""
        for table in self._tables.values():
            table.discard()

    def add_subjects(
        self,
        ids: Sequence[str],
        subject_classes: Sequence[str],
        features: SubjectFeatures,
        masks: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Tokens of B subjects on any device, in any floating dtype (policy features).

        masks: per subject None or (H, W), non-zero = subject, any size of the square picture; used for tokens =
        foreground. A subject without a mask, or with an empty one, keeps all its tokens.
        Raises ValueError for values that are not finite, and for shapes other than the identity's.
        """
        self._require_policy("features")
        self._check_layout(features, len(ids))
        packed = PackedFeatures.of(features, self._identity.dtype)
        packed.check_finite(tuple(ids))
        packed = packed.to("cpu")
        _synchronize(features)
        masks = masks or [None] * len(ids)
        for index, (subject_id, name, mask) in enumerate(zip(ids, subject_classes, masks, strict=True)):
            self._add(SUBJECTS, subject_id, [name, *self._token_values(packed, index, mask)])

    def add_subject_latents(self, ids: Sequence[str], subject_classes: Sequence[str], latents: Tensor) -> None:
        """Latents (B, c, h, w) as the UNet expects them: posterior mean times scaling factor (policy latents)."""
        self._require_policy("latents")
        stored = _to_cpu(latents, LATENT_DTYPE, (len(ids), *self._identity.latent_shape), "latents")
        for subject_id, name, latent in zip(ids, subject_classes, stored, strict=True):
            self._add(SUBJECTS, subject_id, [name, latent])

    def add_targets(self, ids: Sequence[str], mean: Tensor, variance: Tensor) -> None:
        """Posterior of B target latents (B, c, h, w), scaled as the UNet expects them.

        That is the VAE's mean times its scaling factor, and its variance times the factor's square: a training
        latent is mean + sqrt(variance) * noise, and nothing is left to multiply.
        """
        shape = (len(ids), *self._identity.latent_shape)
        means, variances = (
            _to_cpu(mean, LATENT_DTYPE, shape, "mean"),
            _to_cpu(variance, VARIANCE_DTYPE, shape, "variance"),
        )
        for picture_id, *values in zip(ids, means, variances, strict=True):
            self._add(LATENTS, picture_id, values)

    def add_texts(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        token_ids: Tensor,
        embeddings: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> None:
        """B texts, their token ids (B, L) and, if the store holds them, their embeddings (B, L, D) and (B, P).

        Of a model with pooled embeddings the token ids are (B, 2 L).
        """
        identity = self._identity
        stored = [_to_cpu(token_ids, "int32", (len(ids), identity.num_token_ids), "token_ids")]
        wanted = {
            "embeddings": (embeddings, identity.text_embeddings, identity.text_shape),
            "pooled": (pooled, identity.text_embeddings and identity.pooled_channels > 0, (identity.pooled_channels,)),
        }
        for name, (values, is_wanted, shape) in wanted.items():
            if is_wanted is not (values is not None):
                raise ValueError(
                    f"text_embeddings is {identity.text_embeddings} and pooled_channels is {identity.pooled_channels}: "
                    f"{name} must be given accordingly"
                )
            if values is not None:
                stored.append(_to_cpu(values, EMBEDDING_DTYPE, (len(ids), *shape), name))
        for index, (text_id, text) in enumerate(zip(ids, texts, strict=True)):
            self._add(TEXTS, text_id, [text, *(tensor[index] for tensor in stored)])

    def close(self, samples: pa.Table) -> ShardFiles:
        """Stores the shard's objects, samples/<shard>.parquet last.

        samples: one row per pair with the string columns pair_id, subject_id, target_id, text_id, and any others. The
        ids may lie in other shards.
        """
        _check_samples(samples)
        # What vouches for the shard goes before what it vouches for is replaced.
        with suppress(FileNotFoundError):
            filesystem, path = self._output.filesystem, self._output.path(f"{SAMPLES}/{self._shard}.parquet")
            with_retries(lambda: filesystem.rm_file(path), f"removing {path}")
        stored = [table.store() for table in self._tables.values()]
        index = pa.concat_tables([rows for _, rows in stored]).cast(INDEX_SCHEMA)
        files = [file for file, _ in stored] + [self._store_table(INDEX, index)]
        vouched = {FILES_KEY: json.dumps([file.to_json() for file in files]).encode()}
        files.append(self._store_table(SAMPLES, samples, vouched))
        return ShardFiles(self._shard, len(samples), tuple(files))

    def _add(self, table: str, row_id: str, values: Sequence[Value]) -> None:
        if not is_id(row_id):
            raise ValueError(f"{table}: {row_id[:80]!r} is no id of 32 hex digits")
        if (table, row_id) in self._seen:
            raise ValueError(f"{table}: {row_id} is added a second time to shard {self._shard}")
        self._seen.add((table, row_id))
        self._tables[table].add(row_id, values)

    def _token_values(self, packed: PackedFeatures, index: int, mask: Tensor | None) -> list[Value]:
        """The columns behind the class, in the schema's order."""
        values: list[Value] = []
        kept: dict[str, Tensor] = {}
        if self._side:
            cells = touched_cells(mask, self._side)
            values.append(pack_cells(cells))
            kept = kept_tokens(cells, self._identity.blocks)
        for block in self._identity.blocks:
            tensors = [] if packed.scales is None else [packed.scales[block.name][index]]
            tensors.append(packed.values[block.name][index])
            values += [tensor[kept[block.name]] if kept else tensor.contiguous() for tensor in tensors]
        return values

    def _require_policy(self, policy: str) -> None:
        if self._identity.policy != policy:
            raise ValueError(f"the store's policy is {self._identity.policy}, these are for policy {policy}")

    def _check_layout(self, features: SubjectFeatures, num_subjects: int) -> None:
        if features.mask is not None:
            raise ValueError("features with a mask cannot be stored: encode one picture per subject, without padding")
        wanted = {b.name: (num_subjects, b.num_tokens, b.num_channels) for b in self._identity.blocks}
        found = {name: tuple(tokens.shape) for name, tokens in features.tokens.items()}
        for name in wanted.keys() | found.keys():
            if wanted.get(name) != found.get(name):
                raise ValueError(f"block {name}: {found.get(name)} was encoded, {wanted.get(name)} is to be stored")

    def _store_table(self, folder: str, table: pa.Table, metadata: dict[bytes, bytes] | None = None) -> StoredFile:
        relative = f"{folder}/{self._shard}.parquet"
        data = to_parquet(table.replace_schema_metadata(file_metadata(folder, self._identity) | (metadata or {})))
        self._output.write(relative, data)
        return StoredFile(relative, len(data), len(table), xxhash.xxh3_128_hexdigest(data))


def to_parquet(table: pa.Table) -> bytes:
    """A small table as a compressed Parquet file with page checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, row_group_size=65_536)
    return bytes(sink.getvalue())


def _to_cpu(tensor: Tensor, dtype: str, shape: tuple[int, ...], name: str) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: {tuple(tensor.shape)} was computed, {shape} is to be stored")
    if tensor.is_floating_point() and not torch.isfinite(tensor.to(DTYPES[dtype])).all():
        raise ValueError(f"{name}: values are infinite or no number in {dtype}; the model is damaged")
    return tensor.to(DTYPES[dtype]).cpu().contiguous()


def _synchronize(features: SubjectFeatures) -> None:
    """Waits for the copies to the CPU."""
    device = next(iter(features.tokens.values())).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check_samples(samples: pa.Table) -> None:
    for name in SAMPLE_COLUMNS:
        if name not in samples.column_names:
            raise ValueError(f"samples: the column {name} is missing")
        if not pa.types.is_string(samples.schema.field(name).type) or samples.column(name).null_count:
            raise ValueError(f"samples: the column {name} must be a string in every row")
