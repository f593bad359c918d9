"""What a feature store will weigh and cost, before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.features.identity import FeatureIdentity
from tasks.features.model_shape import EncodingCost


@dataclass(frozen=True)
class Estimate:
    """Rows and bytes by table (subjects, latents, texts), hours of computing, and when reading beats recomputing."""

    rows: Mapping[str, int]
    num_bytes: Mapping[str, int]
    bytes_per_subject: int
    hours: float | None
    break_even_from_picture: float | None
    """Bytes per second and device above which reading a subject's features beats computing them from its picture."""
    break_even_from_latent: float | None

    @property
    def total_bytes(self) -> int:
        """Of all tables."""
        return sum(self.num_bytes.values())

    def describe(self) -> list[tuple[str, str]]:
        """Labels and values for a table in the terminal."""
        raise NotImplementedError


def estimate(
    num_subjects: int,
    num_targets: int,
    num_texts: int,
    identity: FeatureIdentity,
    foreground_share: float = 0.3,
    *,
    cost: EncodingCost | None = None,
    device: str = "gpu",
    num_workers: int = 1,
) -> Estimate:
    """The estimate for so many distinct subjects, target pictures and texts. Pure arithmetic.

    cost: `ModelShape.of(model).cost`; without it there are no hours and no break-even. device: gpu or cpu.
    """
    raise NotImplementedError
