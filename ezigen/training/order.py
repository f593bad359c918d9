"""Which sample comes at which position of a run: arithmetic on the seed alone, the same for any number of workers.

Position p is the p-th sample that a run takes; its global batch k holds the positions [k B, (k + 1) B). Sources are
mixed by their weights, and each source is a stream of epochs, every epoch a permutation of the source's samples.
"""

import hashlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ezigen.config import ConfigurationError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class SampleOrder:
    """The order in which a run takes samples of several sources.

    sizes: samples of each source. weights: how often each one comes, relative to the others; a source with weight 0
    never does. Raises ValueError if a source with a weight has no samples, or none has a weight.
    """

    def __init__(self, seed: int, sizes: Sequence[int], weights: Sequence[float]) -> None:
        for source, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            if weight and not size:
                raise ValueError(f"source {source} has weight {weight} but no samples")
        self._seed, self._sizes = seed, tuple(sizes)
        self._shares = _nested_shares(weights)

    def place(self, position: int) -> tuple[int, int]:
        """Source of a position, and which of the source's samples it takes."""
        source, index = self.stream(position)
        epoch, within = divmod(index, self._sizes[source])
        return source, int(permutation(self._seed, epoch, source, self._sizes[source])[within])

    def stream(self, position: int) -> tuple[int, int]:
        """Source of a position, and how many of the positions before it have the same source.

        Of the first n positions the first source gets n times its share, rounded, whatever n is: nothing drifts, and
        every stretch of positions holds the shares to within one. The others divide what is left in the same way.
        """
        index = position
        for source, share in enumerate(self._shares):
            before = _rounded(index, share)
            if _rounded(index + 1, share) > before:
                return source, before
            index -= before
        raise AssertionError("the shares of the last source with a weight are not 1")


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, source: int, num_samples: int) -> npt.NDArray[np.int64]:
    """The order of a source's samples in one epoch, read only; the same with any version of numpy."""
    order = np.argsort(_random_words(f"order|{seed}|{source}|{epoch}", num_samples))
    order.setflags(write=False)
    return order


def choose(seed: int, position: int, num_candidates: int, num_wanted: int) -> npt.NDArray[np.int64]:
    """Which of the candidates a position takes, in ascending order; all of them where no more than enough."""
    if num_candidates <= num_wanted:
        return np.arange(num_candidates)
    return np.sort(np.argsort(_random_words(f"choose|{seed}|{position}", num_candidates))[:num_wanted])


def rank_share(positions: range, rank: int, num_ranks: int) -> range:
    """The contiguous part of some positions that a rank takes; parts differ by one at most, the first are longer."""
    size, longer = divmod(len(positions), num_ranks)
    start = rank * size + min(rank, longer)
    return positions[start : start + size + (rank < longer)]


def batch_share(step: int, batch_size: int, rank: int, num_ranks: int) -> range:
    """The positions that a rank computes in the global batch that follows `step` finished steps.

    Raises ConfigurationError if there are more ranks than samples in a batch.
    """
    if num_ranks > batch_size:
        raise ConfigurationError(
            f"{num_ranks} workers cannot share a batch of {batch_size}: give training.batch_size at least {num_ranks}, "
            f"or cluster.num_workers at most {batch_size}."
        )
    return rank_share(range(step * batch_size, (step + 1) * batch_size), rank, num_ranks)


def hash_fractions(seed: int, texts: Iterable[str]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for every text, uniform and independent of the other texts."""
    key = str(seed).encode()
    digests = (hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8, key=key).digest() for text in texts)
    # The upper 53 bits are what a double holds exactly; all 64 could be rounded to 1.
    words = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64) >> np.uint64(11)
    return words.astype(np.float64) / 2**53


def _nested_shares(weights: Sequence[float]) -> list[Fraction]:
    """Of every source, its share among itself and those after it; 1 for the last one with a weight."""
    exact = [Fraction(weight) for weight in weights]
    if not any(exact):
        raise ValueError("no source has a weight")
    rest = [sum(exact[source:], Fraction()) for source in range(len(exact))]
    return [weight / left if left else Fraction() for weight, left in zip(exact, rest, strict=True)]


def _rounded(count: int, share: Fraction) -> int:
    """The count times the share, to the nearest whole number, halves up. Exact: counts may exceed what floats hold."""
    return (2 * count * share.numerator + share.denominator) // (2 * share.denominator)


def _random_words(key: str, count: int) -> npt.NDArray[np.uint64]:
    """Distinct random words: SplitMix64 (Steele et al. 2014), a bijection of a counter that starts at a key's hash."""
    start = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
    words = np.uint64(start) + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    mixed: npt.NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed
