"""Writing one shard of a feature store, a subject at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from torch import Tensor

from ezigen.subject import SubjectFeatures
from tasks.features.identity import FeatureIdentity
from tasks.storage.folder import OutputFolder
from tasks.storage.stored_file import StoredFile


@dataclass(frozen=True)
class ShardFiles:
    """A finished shard: its name, its samples and its objects, the completion object last."""

    name: str
    rows: int
    files: tuple[StoredFile, ...]


class FeatureShardWriter:
    """Writes one shard; memory stays at one subject (or one row group), whatever the shard's size.

    Rows go to local temporary files; `close` stores them whole, samples/<shard>.parquet last. A writer that is left
    by an exception (`with`) or never closed stores nothing. Ids must be 32 hex digits, each once per table.
    """

    def __init__(self, output: OutputFolder, identity: FeatureIdentity, shard: str, *, row_group_mib: int = 0) -> None:
        raise NotImplementedError

    def __enter__(self) -> "FeatureShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the temporary files."""

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
        """
        raise NotImplementedError

    def add_subject_latents(self, ids: Sequence[str], subject_classes: Sequence[str], latents: Tensor) -> None:
        """Latents (B, c, h, w) as the UNet expects them: posterior mean times scaling factor (policy latents)."""
        raise NotImplementedError

    def add_targets(self, ids: Sequence[str], mean: Tensor, variance: Tensor) -> None:
        """Posterior of B target latents (B, c, h, w), scaled as the UNet expects them.

        That is the VAE's mean times its scaling factor, and its variance times the factor's square: a training
        latent is mean + sqrt(variance) * noise, and nothing is left to multiply.
        """
        raise NotImplementedError

    def add_texts(
        self, ids: Sequence[str], texts: Sequence[str], token_ids: Tensor, embeddings: Tensor | None = None
    ) -> None:
        """B texts, their token ids (B, L) and, if the store holds them, their embeddings (B, L, D)."""
        raise NotImplementedError

    def close(self, samples: pa.Table) -> ShardFiles:
        """Stores the shard's objects, samples/<shard>.parquet last.

        samples: one row per pair with the string columns pair_id, subject_id, target_id, text_id, and any others. The
        ids may lie in other shards.
        """
        raise NotImplementedError
