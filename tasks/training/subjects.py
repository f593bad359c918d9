"""Which held-out subjects the sample sheets show, and their pictures from the stored pairs."""

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from ezigen.config import ConfigurationError, ItemError
from ezigen.images import Picture, decode_picture
from tasks.features.pairs_set import DamagedPairs, PairsSet
from tasks.storage import Locations
from tasks.storage.filesystems import describe_error

logger = logging.getLogger(__name__)

CANDIDATES_PER_SUBJECT = 16
"""Held-out pairs that are looked at for each subject that is wanted: enough for other classes, few enough to read."""


@dataclass(frozen=True, eq=False)
class HeldOutSubject:
    """A subject that is never trained on."""

    pair_id: str
    subject_class: str
    picture: Picture


@dataclass(frozen=True)
class Candidate:
    """A held-out pair, and in which row of which shard of the pairs it lies."""

    pair_id: str
    subject_class: str
    shard: str
    row: int

    @property
    def group(self) -> str:
        """Its picture or video."""
        return self.pair_id.rpartition("/")[0]


def load_subjects(
    pairs_uri: str, held_out: Collection[str], num_subjects: int, *, seed: int, locations: Locations | None = None
) -> tuple[HeldOutSubject, ...]:
    """Up to so many of these pairs' subjects: other classes and other pictures or videos first.

    The choice depends on the seed and the pairs alone. Pairs that are not there or cannot be read give none, and a
    warning that names them: training does not need them.
    """
    if not held_out or not num_subjects:
        return ()
    if not pairs_uri:
        logger.warning("no sample sheets: the feature store does not say where its pairs lie; give inputs.pairs_uri")
        return ()
    try:
        pairs = PairsSet.open(pairs_uri, locations)
        found = find_candidates(pairs, frozenset(held_out), CANDIDATES_PER_SUBJECT * num_subjects, seed)
        chosen = choose(found, num_subjects, seed)
        return tuple(_load(pairs, candidate) for candidate in chosen)
    except (ConfigurationError, DamagedPairs, ItemError, OSError) as error:
        logger.warning(
            "no sample sheets, the held-out loss alone is measured: the pairs at %s cannot be used (%s); "
            "inputs.pairs_uri can name another place",
            pairs_uri,
            describe_error(error),
        )
        return ()


def find_candidates(pairs: PairsSet, held_out: Collection[str], limit: int, seed: int) -> list[Candidate]:
    """At least `limit` held-out pairs, if there are as many; shards are read in an order drawn by the seed."""
    found: list[Candidate] = []
    for shard in sorted(pairs.shards, key=lambda name: _draw(seed, name)):
        found += [candidate for candidate in _read_shard(pairs, shard) if candidate.pair_id in held_out]
        if len(found) >= limit:
            break
    return found


def choose(candidates: Iterable[Candidate], num_subjects: int, seed: int) -> list[Candidate]:
    """Some candidates, one after the other: of the class, and then of the picture or video, that was taken least often;
    among equals as drawn by the seed.
    """
    left = sorted(candidates, key=lambda candidate: _draw(seed, candidate.pair_id))
    classes, groups = Counter[str](), Counter[str]()
    chosen: list[Candidate] = []
    while left and len(chosen) < num_subjects:
        best = min(left, key=lambda candidate: (classes[candidate.subject_class], groups[candidate.group]))
        left.remove(best)
        classes[best.subject_class] += 1
        groups[best.group] += 1
        chosen.append(best)
    return chosen


def _read_shard(pairs: PairsSet, shard: str) -> Iterator[Candidate]:
    row = 0
    for batch in pairs.read_rows(shard, ["pair_id", "subject_class"]):
        for pair_id, subject_class in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield Candidate(pair_id, subject_class, shard, row)
            row += 1


def _load(pairs: PairsSet, candidate: Candidate) -> HeldOutSubject:
    start = 0
    for batch in pairs.read_rows(candidate.shard, ["subject", "subject_sha256"]):
        if candidate.row < start + len(batch):
            row = candidate.row - start
            data, sha256 = (column[row].as_py() for column in batch.columns)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise pairs.damaged(candidate.shard, f"the subject of pair {candidate.pair_id} has another checksum")
            return HeldOutSubject(candidate.pair_id, candidate.subject_class, decode_picture(data))
        start += len(batch)
    raise pairs.damaged(candidate.shard, f"it has fewer than {candidate.row + 1} rows")


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}|sheet|{name}".encode(), digest_size=8).digest()
