"""Reading a feature store: one subject by id, all in order, or the plain tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import Tensor

from ezigen.subject import SubjectFeatures
from tasks.features.identity import FeatureIdentity
from tasks.storage.locations import Locations


@dataclass(frozen=True, eq=False)
class SubjectBatch:
    """Some stored subjects: ids, classes, features, and where on each block's token grid the tokens belong.

    kept: block name -> (B, num_tokens) bool in raster order; None when all tokens are stored.
    """

    ids: tuple[str, ...]
    subject_classes: tuple[str, ...]
    features: SubjectFeatures
    kept: dict[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class TargetLatent:
    """Posterior of a target picture, both (c, h, w) in fp32, scaled as the UNet expects them."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class StoredText:
    """A text, its token ids (L,) int64 and its embeddings (L, D) fp16, if the store holds them."""

    text: str
    token_ids: Tensor
    embeddings: Tensor | None


class FeatureStore:
    """A finished feature store, read only. Small and picklable: indexes are loaded where they are used."""

    identity: FeatureIdentity

    @classmethod
    def open(
        cls,
        uri: str,
        locations: Locations | None = None,
        *,
        expect: FeatureIdentity | Mapping[str, Any] | None = None,
    ) -> "FeatureStore":
        """The store at a location.

        expect: the identity, or some of its fields (model_fingerprint=..., t_sub=...), that it must have.
        Raises ConfigurationError for one that differs, that is unfinished, or that is no feature store.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of subjects."""
        raise NotImplementedError

    def subject_ids(self) -> list[str]:
        """Every subject, by id."""
        raise NotImplementedError

    def read_subject(self, subject_id: str) -> SubjectFeatures:
        """One subject's features, batch size 1. Raises KeyError for an unknown id, ConfigurationError for damage."""
        raise NotImplementedError

    def read_subjects(self, subject_ids: Sequence[str]) -> SubjectBatch:
        """Several subjects in this order; with foreground tokens, shorter ones are padded and masked."""
        raise NotImplementedError

    def read_subject_latent(self, subject_id: str) -> Tensor:
        """One subject's latent (c, h, w) fp32 of a store with policy latents."""
        raise NotImplementedError

    def iterate(
        self,
        shards: Sequence[str] | None = None,
        *,
        blocks: Sequence[str] | None = None,
        batch_size: int = 8,
    ) -> Iterator[SubjectBatch]:
        """Subjects in stored order, of some shards or all, optionally only some blocks."""
        raise NotImplementedError

    def read_target(self, picture_id: str) -> TargetLatent:
        """One target's posterior. Raises like `read_subject`."""
        raise NotImplementedError

    def read_text(self, text_id: str) -> StoredText:
        """One text. Raises like `read_subject`."""
        raise NotImplementedError

    def samples(self, shards: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of samples/: pair_id, subject_id, target_id, text_id, and what else was stored with them."""
        raise NotImplementedError

    def verify(self) -> list[str]:
        """Names of the shards with an object that is missing or whose bytes are not those that were written."""
        raise NotImplementedError
