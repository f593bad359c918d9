"""What a feature store will weigh and cost, before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.features.hardware import Hardware
from tasks.features.identity import FeatureIdentity
from tasks.features.kept_share import KeptShare
from tasks.features.model_shape import EncodingCost
from tasks.features.schema import (
    DTYPES,
    EMBEDDING_DTYPE,
    LATENT_DTYPE,
    LATENTS,
    SCALE_DTYPE,
    SUBJECTS,
    TEXTS,
    VARIANCE_DTYPE,
    num_bytes,
    table_schema,
)

# Page header, column chunk in the footer and the row of the index; fitted to written stores of several shapes.
BYTES_PER_VALUE = 120
# The id and what is no tensor.
BYTES_PER_ROW = 60


@dataclass(frozen=True)
class Estimate:
    """Rows and bytes by table (subjects, latents, texts), hours of computing, and when reading beats recomputing."""

    rows: Mapping[str, int]
    num_bytes: Mapping[str, int]
    bytes_per_subject: int
    """Of the numbers alone, which is what a reader moves."""
    hours: float | None
    """On this hardware; None where the model's cost is not given."""
    break_even_from_picture: float | None
    """Bytes per second and worker above which reading a subject's features beats computing them from its picture."""
    break_even_from_latent: float | None
    """The same against computing them from a stored latent."""
    hardware: Hardware
    kept: str = ""
    """Of a store of foreground tokens: how many of them are stored, and how that is known."""

    @property
    def total_bytes(self) -> int:
        """Of all tables."""
        return sum(self.num_bytes.values())

    def bytes_of(self, rows: Mapping[str, int]) -> float:
        """Of so many rows by table."""
        return sum(rows[table] * self.num_bytes[table] / self.rows[table] for table in rows if self.rows[table])

    def describe(self) -> list[tuple[str, str]]:
        """Labels and values for a table in the terminal."""
        lines = [(name, f"{self.rows[name]:,} rows, {_size(self.num_bytes[name])}") for name in self.rows]
        lines += [("total", _size(self.total_bytes)), ("per subject", _size(self.bytes_per_subject))]
        if self.kept:
            lines.append(("foreground tokens", self.kept))
        if self.hours is not None:
            lines.append(("computing", f"{_span(self.hours)} on {self.hardware.describe()}"))
        if self.break_even_from_picture is not None and self.break_even_from_latent is not None:
            lines.append(
                (
                    "break-even",
                    f"reading features pays above {_size(self.break_even_from_picture)}/s per "
                    f"{self.hardware.device} worker against pictures, {_size(self.break_even_from_latent)}/s against "
                    "stored latents",
                )
            )
        return lines


def estimate(
    num_subjects: int,
    num_targets: int,
    num_texts: int,
    identity: FeatureIdentity,
    kept: KeptShare | float = 0.3,
    *,
    cost: EncodingCost | None = None,
    hardware: Hardware | None = None,
) -> Estimate:
    """The estimate for so many distinct subjects, target pictures and texts. Pure arithmetic.

    kept: which of its tokens a foreground store keeps, by the masks of some subjects, or one share for all blocks.
    cost: `ModelShape.of(model).cost`; without it there are no hours and no break-even. hardware: `find_hardware(...)`,
    by default one H200.
    """
    hardware = hardware or Hardware()
    rows = {SUBJECTS: num_subjects, LATENTS: num_targets, TEXTS: num_texts}
    per_subject = subject_bytes(identity, kept)
    values = {SUBJECTS: per_subject, LATENTS: _target_bytes(identity), TEXTS: _text_bytes(identity)}
    stored = {table: count * (values[table] + overhead_bytes(table, identity)) for table, count in rows.items()}
    speed = hardware.flop_per_s
    pays = cost is not None and identity.policy == "features"
    return Estimate(
        rows=rows,
        num_bytes=stored,
        bytes_per_subject=per_subject,
        hours=None if cost is None else _flop(rows, identity, cost) / speed / hardware.num_workers / 3600,
        break_even_from_picture=per_subject * speed / cost.subject_flop if cost and pays else None,
        break_even_from_latent=per_subject * speed / cost.unet_flop if cost and pays else None,
        hardware=hardware,
        kept=_describe_kept(identity, kept),
    )


def overhead_bytes(table: str, identity: FeatureIdentity) -> int:
    """Bytes of one row beside its numbers."""
    return BYTES_PER_ROW + BYTES_PER_VALUE * len(table_schema(table, identity))


def subject_bytes(identity: FeatureIdentity, kept: KeptShare | float = 0.3) -> int:
    """Bytes of one subject's numbers: 23.1 MB for SD2.1-base in fp16, all tokens."""
    if identity.policy == "latents":
        return num_bytes(LATENT_DTYPE, identity.latent_shape)
    per_token = DTYPES[SCALE_DTYPE].itemsize if identity.dtype == "fp8" else 0
    size = 0.0
    for block in identity.blocks:
        num_tokens = _share(identity, kept, block.name) * block.num_tokens
        size += num_tokens * (block.num_channels * DTYPES[identity.dtype].itemsize + per_token)
    mask = max(block.num_tokens for block in identity.blocks) // 8 if identity.tokens == "foreground" else 0
    return round(size) + mask


def _share(identity: FeatureIdentity, kept: KeptShare | float, block: str) -> float:
    if identity.tokens != "foreground":
        return 1.0
    return kept.by_block[block] if isinstance(kept, KeptShare) else kept


def _describe_kept(identity: FeatureIdentity, kept: KeptShare | float) -> str:
    if identity.tokens != "foreground":
        return ""
    return kept.describe(identity.blocks) if isinstance(kept, KeptShare) else f"{kept:.0%} of all numbers"


def _target_bytes(identity: FeatureIdentity) -> int:
    return num_bytes(LATENT_DTYPE, identity.latent_shape) + num_bytes(VARIANCE_DTYPE, identity.latent_shape)


def _text_bytes(identity: FeatureIdentity) -> int:
    embeddings = num_bytes(EMBEDDING_DTYPE, identity.text_shape) + num_bytes(
        EMBEDDING_DTYPE, (identity.pooled_channels,)
    )
    return num_bytes("int32", (identity.num_token_ids,)) + (embeddings if identity.text_embeddings else 0)


def _flop(rows: Mapping[str, int], identity: FeatureIdentity, cost: EncodingCost) -> float:
    per_subject = cost.vae_flop if identity.policy == "latents" else cost.subject_flop
    per_text = cost.text_flop if identity.text_embeddings else 0.0
    return rows[SUBJECTS] * per_subject + rows[LATENTS] * cost.vae_flop + rows[TEXTS] * per_text


def _size(count: float) -> str:
    """Decimal units, as disks and networks are sold."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _span(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{max(1, round(hours * 3600))} s"
