"""What came of a run of precompute_features."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.storage import RunState


@dataclass(frozen=True)
class FeatureOutcome:
    """The end of a run, in numbers. Rows and bytes are those of the whole store, earlier runs included."""

    run_id: str
    state: RunState
    pairs: int
    subjects: int
    targets: int
    texts: int
    num_bytes: Mapping[str, int] = field(default_factory=dict)
    """By table: subjects, latents, texts, samples, index."""
    seconds: float = 0.0
    subjects_made: int = 0
    """By this run."""
    shards_made: int = 0
    shards_kept: int = 0
    """Shards that earlier runs had stored."""
    shards_repaired: int = 0
    """Those of `shards_made` that were stored before, but damaged."""
    manifest_uri: str = ""
    """Empty unless the store is complete."""

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.state == "stopped"

    @property
    def nothing_to_do(self) -> bool:
        """Whether everything was there already."""
        return self.shards_made == 0 and self.state == "finished"

    @property
    def total_bytes(self) -> int:
        """Of all tables."""
        return sum(self.num_bytes.values())
