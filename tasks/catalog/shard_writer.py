"""Result rows on their way into shards: stored when enough have come together, or when they have waited long enough."""

import time
from collections.abc import Callable

from tasks.catalog.results import ResultRow
from tasks.storage import RunOutput, compact_results

_SHARDS_PER_MERGE = 1000


class ShardWriter:
    """Collects the rows of one run. `check` runs before every write and raises when the run may no longer write.

    A row that is added here is not done yet: only `flush`, or a later `flush_if_due`, makes it so.
    """

    def __init__(
        self,
        output: RunOutput,
        run_id: str,
        *,
        shard_size: int,
        flush_interval_s: float,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output, self._run_id = output, run_id
        self._shard_size, self._flush_interval_s = shard_size, flush_interval_s
        self._check, self._clock = check, clock
        self._rows: list[ResultRow] = []
        self._oldest_at = 0.0
        self.num_shards = 0
        self.num_rows = 0

    def add(self, row: ResultRow) -> None:
        """Takes a row; writes a shard when it is full."""
        if not self._rows:
            self._oldest_at = self._clock()
        self._rows.append(row)
        if len(self._rows) >= self._shard_size:
            self.flush()

    def flush_if_due(self) -> None:
        """Writes what has waited for too long."""
        if self._rows and self._clock() - self._oldest_at >= self._flush_interval_s:
            self.flush()

    def flush(self) -> None:
        """Stores every row that was added. Raises what the store or `check` raises; the rows are then kept."""
        if not self._rows:
            return
        self._check()
        self._output.write_results(self._run_id, self.num_shards, self._rows)
        self.num_shards += 1
        self.num_rows += len(self._rows)
        self._rows = []
        if self.num_shards % _SHARDS_PER_MERGE == 0:
            compact_results(self._output, self._check)
