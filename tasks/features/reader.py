"""Reading a feature store: one subject by id, all in order, or the plain tables."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from torch import Tensor

from ezigen.config import ConfigurationError
from ezigen.subject import SubjectFeatures
from tasks.features.foreground import finest_side, kept_tokens, unpack_cells
from tasks.features.identity import PREPROCESSING, FeatureIdentity
from tasks.features.index import TableIndex
from tasks.features.manifest import INDEX_PATH, STORE_PATH, find_damage, read_manifest, read_store
from tasks.features.packing import PackedFeatures
from tasks.features.row_reader import RawColumn, RowReader, damaged, tensors
from tasks.features.schema import (
    DTYPES,
    EMBEDDING_DTYPE,
    EMBEDDINGS,
    IDENTITY_KEY,
    LATENT,
    LATENT_DTYPE,
    LATENTS,
    MASK,
    MEAN,
    POOLED,
    SAMPLES,
    SCALE_DTYPE,
    SCALE_SUFFIX,
    SUBJECT_CLASS,
    SUBJECTS,
    TEXT,
    TEXTS,
    TOKEN_IDS,
    VARIANCE,
    VARIANCE_DTYPE,
    table_schema,
)
from tasks.features.writer import ShardFiles
from tasks.storage.folder import OutputFolder
from tasks.storage.locations import Locations
from tasks.storage.stored_file import StoredFile


@dataclass(frozen=True, eq=False)
class SubjectBatch:
    """Some stored subjects: ids, classes, features, and where on each block's token grid the tokens belong.

    kept: block name -> (B, num_tokens) bool in raster order; None when all tokens are stored.
    """

    ids: tuple[str, ...]
    subject_classes: tuple[str, ...]
    packed: PackedFeatures
    kept: dict[str, Tensor] | None = None

    @cached_property
    def features(self) -> SubjectFeatures:
        """The features in the stored precision, views of what was read; fp16 for fp8."""
        return self.packed.unpack()


@dataclass(frozen=True, eq=False)
class TargetLatent:
    """Posterior of a target picture, both (c, h, w) in fp32, scaled as the UNet expects them; or (B, c, h, w)."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class StoredText:
    """A text, its token ids (L,) int64 and its embeddings (L, D) and, pooled, (P,) fp16, if the store holds them."""

    text: str
    token_ids: Tensor
    embeddings: Tensor | None
    pooled: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SubjectLatents:
    """Some subjects of a store with policy latents: ids, classes, and latents (B, c, h, w) in fp32, scaled."""

    ids: tuple[str, ...]
    subject_classes: tuple[str, ...]
    latents: Tensor


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Token ids (B, L) int64 of some texts, and embeddings (B, L, D) and, pooled, (B, P) fp16, if the store holds them.

    Of a model with pooled embeddings the token ids are (B, 2 L).
    """

    token_ids: Tensor
    embeddings: Tensor | None
    pooled: Tensor | None = None


class FeatureStore:
    """A finished feature store, read only. Small and picklable: every process loads the index when it needs it."""

    def __init__(
        self,
        output: OutputFolder,
        identity: FeatureIdentity,
        shards: Sequence[ShardFiles],
        index: StoredFile,
        *,
        check: bool | None = None,
    ) -> None:
        self.output, self.identity = output, identity
        self.shards: tuple[ShardFiles, ...] = tuple(shards)
        self.index_file, self._check = index, check
        self._tables: dict[str, tuple[TableIndex, RowReader]] = {}
        self._loading = threading.Lock()

    @classmethod
    def open(
        cls,
        uri: str,
        locations: Locations | None = None,
        *,
        expect: FeatureIdentity | Mapping[str, Any] | None = None,
        check: bool | None = None,
    ) -> "FeatureStore":
        """The store at a location.

        expect: the identity, or some of its fields (model_fingerprint, t_sub, size_px, ...), that it must have;
        `preprocessing` must be this package's unless another one is named.
        check: compare checksums on every read; None does so for what comes over a network.
        Raises ConfigurationError for one that differs, that is unfinished, or that is no feature store.
        """
        output = OutputFolder(uri, locations)
        identity = read_store(output)
        if identity is None:
            raise ConfigurationError(
                f"{output.root_uri} is no feature store: {STORE_PATH} is missing; give the folder that "
                "precompute_features wrote."
            )
        if not isinstance(expect, FeatureIdentity):
            expect = {"preprocessing": PREPROCESSING, **(expect or {})}
        identity.check(expect, f"the feature store {output.root_uri}")
        manifest = read_manifest(output)
        if manifest is None:
            raise ConfigurationError(
                f"the feature store {output.root_uri} is not finished; run precompute_features again, it continues."
            )
        identity.check(manifest[0], f"{output.uri(STORE_PATH)}")
        return cls(output, identity, manifest[1], manifest[2], check=check)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": {}, "_loading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_loading": threading.Lock()}

    def __len__(self) -> int:
        """Number of subjects."""
        return len(self._table(SUBJECTS)[0])

    def subject_ids(self) -> list[str]:
        """Every subject, by id."""
        return self._table(SUBJECTS)[0].ids()

    def read_subject(self, subject_id: str) -> SubjectFeatures:
        """One subject's features, batch size 1. Raises KeyError for an unknown id, ConfigurationError for damage."""
        return self.read_subjects([subject_id]).features

    def read_subjects(self, subject_ids: Sequence[str]) -> SubjectBatch:
        """Several subjects in this order; with foreground tokens, shorter ones are padded and masked."""
        blocks = tuple(block.name for block in self.identity.blocks)
        return self._read_batch(tuple(subject_ids), self._find(SUBJECTS, subject_ids), blocks)

    def read_subject_latent(self, subject_id: str) -> Tensor:
        """One subject's latent (c, h, w) in fp32, of a store with policy latents."""
        return self.read_subject_latents([subject_id]).latents[0]

    def read_subject_latents(self, subject_ids: Sequence[str]) -> SubjectLatents:
        """Several subjects in this order, of a store with policy latents."""
        if self.identity.policy != "latents":
            raise ConfigurationError(f"the feature store {self.output.root_uri} holds features, not subject latents.")
        columns = self._read(SUBJECTS, subject_ids, [SUBJECT_CLASS, LATENT])
        latents = columns[LATENT].as_tensor(DTYPES[LATENT_DTYPE], self.identity.latent_shape).float()
        names = tuple(name.decode() for name in columns[SUBJECT_CLASS].as_bytes())
        return SubjectLatents(tuple(subject_ids), names, latents)

    def iterate(
        self,
        shards: Sequence[str] | None = None,
        *,
        blocks: Sequence[str] | None = None,
        batch_size: int = 8,
    ) -> Iterator[SubjectBatch]:
        """Subjects in stored order, of some shards or all, optionally only some blocks; a batch has one shard's."""
        wanted = tuple(block.name for block in self.identity.blocks if blocks is None or block.name in blocks)
        missing = set(blocks or ()) - set(wanted)
        if missing:
            raise KeyError(
                f"the store has no block {min(missing)}; it has {', '.join(b.name for b in self.identity.blocks)}"
            )
        for shard in self._shard_names(shards):
            index, _ = self._table(SUBJECTS)
            positions = index.stored_order(shard)
            for start in range(0, len(positions), batch_size):
                some = positions[start : start + batch_size]
                yield self._read_batch(tuple(index.ids(some)), some, wanted)

    def read_target(self, picture_id: str) -> TargetLatent:
        """One target's posterior. Raises like `read_subject`."""
        both = self.read_targets([picture_id])
        return TargetLatent(both.mean[0], both.variance[0])

    def read_targets(self, picture_ids: Sequence[str]) -> TargetLatent:
        """Several targets' posteriors in this order, (B, c, h, w)."""
        columns = self._read(LATENTS, picture_ids, [MEAN, VARIANCE])
        shape = self.identity.latent_shape
        mean = columns[MEAN].as_tensor(DTYPES[LATENT_DTYPE], shape).float()
        return TargetLatent(mean, columns[VARIANCE].as_tensor(DTYPES[VARIANCE_DTYPE], shape).float())

    def read_text(self, text_id: str) -> StoredText:
        """One text. Raises like `read_subject`."""
        columns = self._read(TEXTS, [text_id], [TEXT, *self._text_columns()])
        both = self._text_batch(columns)
        embeddings = None if both.embeddings is None else both.embeddings[0]
        pooled = None if both.pooled is None else both.pooled[0]
        return StoredText(columns[TEXT].as_bytes()[0].decode(), both.token_ids[0], embeddings, pooled)

    def read_texts(self, text_ids: Sequence[str]) -> TextBatch:
        """What the networks need of several texts, in this order."""
        return self._text_batch(self._read(TEXTS, text_ids, self._text_columns()))

    def samples(self, shards: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of samples/: pair_id, subject_id, target_id, text_id, and what else was stored with them."""
        for shard in self._shard_names(shards):
            yield from self._read_table(f"{SAMPLES}/{shard}.parquet").to_batches()

    def verify(self) -> list[str]:
        """Names of the shards with an object that is missing or whose bytes are not those that were written."""
        return [shard.name for shard in self.shards if find_damage(self.output, shard) is not None]

    def _text_columns(self) -> list[str]:
        embeddings = [EMBEDDINGS, POOLED] if self.identity.pooled_channels else [EMBEDDINGS]
        return [TOKEN_IDS, *(embeddings if self.identity.text_embeddings else [])]

    def _text_batch(self, columns: Mapping[str, RawColumn]) -> TextBatch:
        token_ids = columns[TOKEN_IDS].as_tensor(torch.int32, (-1,)).long()
        if EMBEDDINGS not in columns:
            return TextBatch(token_ids, None)
        dtype, pooled = DTYPES[EMBEDDING_DTYPE], None
        if POOLED in columns:
            pooled = columns[POOLED].as_tensor(dtype, (self.identity.pooled_channels,))
        return TextBatch(token_ids, columns[EMBEDDINGS].as_tensor(dtype, self.identity.text_shape), pooled)

    def _read(self, table: str, ids: Sequence[str], columns: Sequence[str]) -> dict[str, RawColumn]:
        return self._read_columns(table, self._find(table, ids), columns)

    def _read_columns(
        self, table: str, positions: npt.NDArray[np.int64], columns: Sequence[str]
    ) -> dict[str, RawColumn]:
        index, reader = self._table(table)
        return reader.read([index.place(position) for position in positions], columns)

    def _find(self, table: str, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        index, _ = self._table(table)
        positions = index.find(ids)
        if len(positions) and positions.min() < 0:
            unknown = ids[int(positions.argmin())]
            raise KeyError(f"{unknown!r} is not among the {len(index):,} {table} of {self.output.root_uri}")
        return positions

    def _read_batch(
        self, ids: tuple[str, ...], positions: npt.NDArray[np.int64], blocks: tuple[str, ...]
    ) -> SubjectBatch:
        if self.identity.policy == "latents":
            raise ConfigurationError(
                f"the feature store {self.output.root_uri} holds subject latents, no features; compute them from the "
                "latents, or write a store with policy features."
            )
        scaled = self.identity.dtype == "fp8"
        foreground = self.identity.tokens == "foreground"
        columns = [SUBJECT_CLASS, *([MASK] if foreground else [])]
        columns += [name for block in blocks for name in ([block + SCALE_SUFFIX, block] if scaled else [block])]
        read = self._read_columns(SUBJECTS, positions, columns)
        shapes = {block.name: (-1, block.num_channels) for block in self.identity.blocks if block.name in blocks}
        values = tensors(read, DTYPES[self.identity.dtype], shapes)
        scales = None
        if scaled:
            named = tensors(read, DTYPES[SCALE_DTYPE], {block + SCALE_SUFFIX: (-1,) for block in blocks})
            scales = {block: named[block + SCALE_SUFFIX] for block in blocks}
        kept = self._kept(read[MASK], blocks) if foreground else None
        packed = PackedFeatures(values, scales, None if kept is None else _padding_mask(values, kept))
        return SubjectBatch(ids, tuple(name.decode() for name in read[SUBJECT_CLASS].as_bytes()), packed, kept)

    def _kept(self, masks: RawColumn, blocks: Sequence[str]) -> dict[str, Tensor]:
        layouts = [block for block in self.identity.blocks if block.name in blocks]
        side = finest_side(self.identity.blocks)
        kept = [kept_tokens(unpack_cells(mask, side), layouts) for mask in masks.as_bytes()]
        return {name: torch.stack([one[name] for one in kept]) for name in blocks}

    def _shard_names(self, shards: Sequence[str] | None) -> list[str]:
        known = [shard.name for shard in self.shards]
        unknown = set(shards or ()) - set(known)
        if unknown:
            raise KeyError(f"shard {min(unknown)!r} is not among the {len(known):,} of {self.output.root_uri}")
        return known if shards is None else list(shards)

    def _table(self, table: str) -> tuple[TableIndex, RowReader]:
        """The index and the reader of a table, loaded on first use, by one of the threads that ask."""
        with self._loading:
            if table not in self._tables:
                self._tables[table] = self._load_table(table)
        return self._tables[table]

    def _load_table(self, table: str) -> tuple[TableIndex, RowReader]:
        rows = self._read_table(INDEX_PATH, self.index_file.xxh3, [("table", "=", table)])
        sizes = {s.name: file.num_bytes for s in self.shards for file in s.files if file.path.startswith(f"{table}/")}
        columns = table_schema(table, self.identity).names
        return TableIndex(rows), RowReader(self.output, table, columns, sizes, check=self._check)

    def _read_table(self, relative: str, xxh3: str | None = None, filters: Any = None) -> pa.Table:
        """One of the small tables, which must be of this store."""
        try:
            data = self.output.read(relative)
            if xxh3 is not None and xxhash.xxh3_128_hexdigest(data) != xxh3:
                raise damaged(self.output, relative, "its checksum differs from the one in manifest.json")
            table = pq.read_table(pa.BufferReader(data), filters=filters, page_checksum_verification=True)
        except FileNotFoundError as error:
            raise damaged(self.output, relative, "it is missing") from error
        except pa.ArrowException as error:
            raise damaged(self.output, relative, str(error)) from error
        if (table.schema.metadata or {}).get(IDENTITY_KEY) != self.identity.digest().encode():
            raise damaged(self.output, relative, "it belongs to a store of another identity")
        return table


def _padding_mask(values: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Which of the stored tokens (B, longest) of each block exist; None if all do."""
    masks = {}
    for name, tokens in values.items():
        counts = kept[name].sum(dim=1)
        masks[name] = torch.arange(tokens.shape[1]) < counts[:, None]
    return None if all(mask.all() for mask in masks.values()) else masks
