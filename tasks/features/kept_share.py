"""How many tokens the masks of some subjects keep: what a store of foreground tokens will weigh."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from ezigen.config import ConfigurationError, ItemError
from ezigen.subject.foreground import touched_cells
from tasks.features.foreground import finest_side, kept_tokens
from tasks.features.model_shape import BlockLayout
from tasks.features.ownership import ShardOwnership
from tasks.features.pair_reader import read_mask
from tasks.features.pairs_set import DamagedPairs, PairsSet

T = TypeVar("T")

_MAX_SHARDS, _MAX_PER_SHARD = 8, 16


@dataclass(frozen=True)
class KeptShare:
    """Share of every block's tokens that is stored, on average over `num_subjects` subjects."""

    by_block: Mapping[str, float]
    num_subjects: int

    def of_values(self, blocks: Sequence[BlockLayout]) -> float:
        """Share of all numbers."""
        kept = sum(self.by_block[block.name] * block.num_values for block in blocks)
        return kept / sum(block.num_values for block in blocks)

    def describe(self, blocks: Sequence[BlockLayout]) -> str:
        """63 % of all numbers, by the masks of 128 subjects."""
        return f"{self.of_values(blocks):.0%} of all numbers, by the masks of {self.num_subjects:,} subjects"


def sample_kept_share(
    pairs: PairsSet, owned: Mapping[str, ShardOwnership], blocks: Sequence[BlockLayout]
) -> KeptShare | None:
    """The share by the masks of at most 128 distinct subjects from all over these shards; None if they store none.

    Raises ConfigurationError for a damaged shard of pairs, naming it.
    """
    side, num_subjects = finest_side(blocks), 0
    kept: dict[str, int] = {block.name: 0 for block in blocks}
    for mask in _read_masks(pairs, owned):
        num_subjects += 1
        for name, flags in kept_tokens(touched_cells(mask, side), blocks).items():
            kept[name] += int(flags.sum())
    if not num_subjects:
        return None
    return KeptShare({b.name: kept[b.name] / num_subjects / b.num_tokens for b in blocks}, num_subjects)


def _read_masks(pairs: PairsSet, owned: Mapping[str, ShardOwnership]) -> Iterator[torch.Tensor]:
    places = {shard: np.flatnonzero(one.rows("subjects")) for shard, one in owned.items() if one.counts["subjects"]}
    for shard in _spread(list(places), _MAX_SHARDS):
        try:
            batches = pairs.read_rows(shard, ["subject_mask", "size_px"])
            rows = pa.Table.from_batches(batches).take(_spread(places[shard].tolist(), _MAX_PER_SHARD))
            for row in rows.to_pylist():
                yield read_mask(row["subject_mask"], row["size_px"])
        except (DamagedPairs, ItemError, OSError, ValueError, pa.ArrowException) as error:
            reason = str(error) if isinstance(error, DamagedPairs) else str(pairs.damaged(shard, str(error)))
            raise ConfigurationError(reason) from error


def _spread(values: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of the values, at equal distances."""
    number = min(limit, len(values))
    return [values[(2 * k + 1) * len(values) // (2 * number)] for k in range(number)]
