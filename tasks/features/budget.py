"""What is stored against `inputs.max_gib`, while a run goes on: the plan has only estimated it."""

from collections.abc import Mapping

from ezigen.config import ConfigurationError


class BudgetReached(ConfigurationError):  # noqa: N818
    """The next shards would make the store larger than `inputs.max_gib` allows. What is stored is kept."""


class ByteBudget:
    """Counts what finished shards weigh and says whether those that are being made still fit."""

    def __init__(self, max_gib: float, planned: Mapping[str, float]) -> None:
        """max_gib: 0 sets no limit. planned: what every shard of the store should weigh, in bytes."""
        self._max_bytes = max_gib * 2**30
        self._planned = dict(planned)
        self._left = dict(planned)
        self.stored_bytes = 0

    def add(self, shard: str, num_bytes: int) -> None:
        """One more shard is stored."""
        self.stored_bytes += num_bytes
        self._left.pop(shard, None)

    @property
    def expected_bytes(self) -> float:
        """Of the whole store, by what finished shards weigh and were planned to weigh."""
        return self.stored_bytes + self._scale() * sum(self._left.values())

    def has_place(self, num_shards: int) -> bool:
        """Whether so many more shards fit, be they those with the most to store."""
        if not self._max_bytes or not self._left:
            return True
        largest = sorted(self._left.values(), reverse=True)[: max(1, num_shards)]
        return self.stored_bytes + self._scale() * sum(largest) <= self._max_bytes

    def error(self) -> BudgetReached:
        """Why the run ends, and what to do."""
        stored, expected, limit = (size / 2**30 for size in (self.stored_bytes, self.expected_bytes, self._max_bytes))
        done = len(self._planned) - len(self._left)
        return BudgetReached(
            f"the feature store holds {format_gib(stored)} GiB in {done:,} of {len(self._planned):,} shards, and the "
            f"next ones do not fit into inputs.max_gib ({format_gib(limit)}); all of it will be about "
            f"{format_gib(expected)} GiB. What is stored is kept: raise inputs.max_gib and run again, it continues."
        )

    def _scale(self) -> float:
        """How much heavier shards are than planned."""
        planned = sum(self._planned.values()) - sum(self._left.values())
        return self.stored_bytes / planned if planned else 1.0


def format_gib(size: float) -> str:
    """1,234.5, or 0.12 for less than one."""
    return f"{size:,.1f}" if size >= 1 else f"{size:.2g}"
