"""Which shard stores a subject, a target picture or a text that several shards need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["subjects", "targets", "texts"]
KINDS: tuple[Kind, ...] = ("subjects", "targets", "texts")


@dataclass(frozen=True)
class ShardOwnership:
    """One shard: for each of its pairs, in stored order, whether this shard is the one that stores its subject,
    its target, its text. One bit each.
    """

    num_pairs: int
    bits: Mapping[Kind, bytes]
    counts: Mapping[Kind, int]
    """How many of each the shard stores."""

    def rows(self, kind: Kind) -> npt.NDArray[np.bool_]:
        """One flag per pair."""
        return np.unpackbits(np.frombuffer(self.bits[kind], np.uint8), count=self.num_pairs).astype(np.bool_)
