"""Which of several result rows of one item counts."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.storage.keys import Words, group_starts, sort_order, words_from_hex

IDENTITY_COLUMNS = ("item_key", "status", "attempts", "finished_at")


class Identity(NamedTuple):
    """What tells the attempts at one item apart, as arrays over rows."""

    words: Words
    done: npt.NDArray[np.bool_]
    attempts: npt.NDArray[np.int32]
    finished_us: npt.NDArray[np.int64]


def identify(batch: pa.RecordBatch) -> Identity:
    """The identities of a batch that holds IDENTITY_COLUMNS."""
    return Identity(
        words_from_hex(batch.column("item_key")),
        pc.equal(batch.column("status"), "done").to_numpy(zero_copy_only=False),
        batch.column("attempts").to_numpy(),
        batch.column("finished_at").cast(pa.int64()).to_numpy(),
    )


def resolve(rows: Identity) -> npt.NDArray[np.int64]:
    """Positions of the rows that count, one per item, sorted by key.

    A done row beats a failed one, because its image exists; among equals the one finished last counts, then the one
    with more attempts, then the later position.
    """
    order = sort_order(rows.words)
    starts = group_starts(rows.words[order])
    if starts.all():
        return order
    strength = np.lexsort((rows.attempts, rows.finished_us, rows.done))
    rank = np.empty(len(strength), np.int64)
    rank[strength] = np.arange(len(strength))
    return strength[np.maximum.reduceat(rank[order], np.flatnonzero(starts))]
