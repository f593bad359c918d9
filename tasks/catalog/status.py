"""How a catalog run is doing, read from its output alone: from any machine, while it works or after it died."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ezigen.config import ConfigurationError, ErrorCode
from tasks.storage import RunOutput, RunRecord
from tasks.storage.compaction import is_merged
from tasks.storage.holder import Holder
from tasks.storage.keys import KeyTable, sort_order, words_from_hex
from tasks.storage.lease import read_holder
from tasks.storage.shards import Shard

RATE_WINDOW = timedelta(minutes=5)
"""A rate is that of the last so many minutes."""
_COLUMNS = ("item_key", "run_id", "status", "error_code", "finished_at", "worker")
_MAX_TRIES = 5


@dataclass(frozen=True)
class RunStatus:
    """A moment of a run.

    total: items of this run, or None where the record does not say. done, failed: of them, as far as rows are stored.
    workers: that made a result within RATE_WINDOW. holder: who writes into the output; None: nobody.
    """

    record: RunRecord
    holder: Holder | None
    total: int | None
    done: int
    failed: int
    failed_by_code: Mapping[ErrorCode, int] = field(default_factory=dict)
    rate_per_s: float = 0.0
    workers: int = 0
    last_result_at: datetime | None = None

    @property
    def is_running(self) -> bool:
        """Whether it goes on, as far as can be seen: it has not ended, and somebody holds the output."""
        return self.record.state == "running" and self.holder is not None

    @property
    def is_lost(self) -> bool:
        """Whether it ended without a word: killed, or its machine is gone."""
        return self.record.state == "running" and self.holder is None

    @property
    def finished(self) -> int:
        """Items that have a stored row."""
        return self.done + self.failed

    @property
    def eta_s(self) -> float | None:
        """Seconds until all items have ended at this rate; None where that is not known."""
        if not self.is_running or self.total is None or not self.rate_per_s:
            return None
        return max(self.total - self.finished, 0) / self.rate_per_s

    def cost_per_image(self, price_per_worker_hour: float) -> float | None:
        """What an image of this run costs at a price for one worker, a GPU as a rule, for an hour.

        While it runs from the rate and the workers at work, of a run that ended from its whole time, loading and idling
        included. None before there is an image.
        """
        if self.is_running:
            images_per_hour = 3600 * self.rate_per_s * (self.done / self.finished if self.finished else 0.0)
            return price_per_worker_hour * self.workers / images_per_hour if images_per_hour else None
        num_workers = self.record.measurements.get("num_workers")
        if not num_workers or not self.done or self.record.finished_at is None:
            return None
        return float(price_per_worker_hour * num_workers * self.record.seconds / 3600 / self.done)


@dataclass
class _Tally:
    """What the shards of one run held that were read so far."""

    run_id: str
    known: set[Shard] = field(default_factory=set)
    done: int = 0
    failed: int = 0
    by_code: Counter[ErrorCode] = field(default_factory=Counter)
    recent: list[tuple[datetime, str]] = field(default_factory=list)
    """When results were made, and by which worker: those of the last RATE_WINDOW, and the last one."""
    merged: KeyTable = field(default_factory=lambda: KeyTable(np.empty((0, 2), np.uint64)))
    """The run's items in merged shards. A merge that was killed leaves its inputs behind, which repeat them."""

    def add(self, batch: pa.RecordBatch, since: datetime, *, merged: bool) -> None:
        """Rows that were not added before; those of other runs do not count. Merged shards come first."""
        batch = batch.filter(pc.equal(batch.column("run_id"), self.run_id))
        words = words_from_hex(batch.column("item_key"))
        fresh = self.merged.find(words) < 0
        batch = batch.filter(pa.array(fresh))
        if merged:
            words = np.concatenate([self.merged.words, words[fresh]])
            self.merged = KeyTable(words[sort_order(words)])
        failed = batch.filter(pc.not_equal(batch.column("status"), "done"))
        self.done += len(batch) - len(failed)
        self.failed += len(failed)
        codes = Counter(failed.column("error_code").to_pylist())
        self.by_code.update({ErrorCode(code): number for code, number in codes.items() if code in [*ErrorCode]})
        self._add_recent(batch.filter(pc.not_equal(batch.column("worker"), "")), since)  # refused rows cost no time

    def _add_recent(self, made: pa.RecordBatch, since: datetime) -> None:
        if len(made):
            times = made.column("finished_at")
            made = made.filter(pc.greater_equal(times, min(since, pc.max(times).as_py())))
            self.recent += zip(*(made.column(name).to_pylist() for name in ("finished_at", "worker")), strict=True)


class StatusReader:
    """Reads the status again and again; a shard of results is read once, or once more after a merge."""

    def __init__(self, output: RunOutput) -> None:
        self._output = output
        self._tally = _Tally("")

    def read(self, now: datetime | None = None) -> RunStatus:
        """How the last run on the output is doing. Raises ConfigurationError where there was none."""
        now = now or datetime.now(UTC)
        holder = read_holder(self._output)  # before run.json: a run that ends meanwhile must not seem lost
        record = self._output.read_run()
        if record is None:
            raise ConfigurationError(f"{self._output.root_uri} holds no run (run.json); give the output of a run.")
        if record.run_id != self._tally.run_id:
            self._tally = _Tally(record.run_id)
        for tries_left in reversed(range(_MAX_TRIES)):
            try:
                self._read_rows(now - RATE_WINDOW)
                break
            except FileNotFoundError:  # a merge replaced shards while they were read
                self._tally = _Tally(record.run_id)
                if not tries_left:
                    raise
        return self._measure(record, holder, now)

    def _read_rows(self, since: datetime) -> None:
        shards = self._output.list_results()
        merged = [shard for shard in shards if is_merged(shard)]
        if not self._tally.known.issuperset(merged):
            self._tally = _Tally(self._tally.run_id)  # they hold rows that were counted before
        tally = self._tally
        own = f"/{tally.run_id}-"  # shards that are not merged are named by the run that wrote them
        candidates = [*merged, *(shard for shard in shards if own in shard.path)]
        new = [shard for shard in candidates if shard not in tally.known]
        for shard, batches in self._output.read_shards(new, _COLUMNS):
            for batch in batches:
                tally.add(batch, since, merged=is_merged(shard))
            tally.known.add(shard)

    def _measure(self, record: RunRecord, holder: Holder | None, now: datetime) -> RunStatus:
        tally, since = self._tally, now - RATE_WINDOW
        tally.recent.sort()
        last = tally.recent[-1][0] if tally.recent else None
        recent = [one for one in tally.recent if one[0] > since]
        tally.recent = recent or tally.recent[-1:]
        # Rows come by the shard: what was made since the last one is not known yet, so the last result ends the window.
        start = max(since, datetime.fromisoformat(record.started_at))
        seconds = (recent[-1][0] - start).total_seconds() if recent else 0.0
        return RunStatus(
            record,
            holder,
            _total(record),
            tally.done,
            tally.failed,
            dict(tally.by_code),
            len(recent) / seconds if seconds > 0 else 0.0,
            len({worker for _, worker in recent}),
            last,
        )


def _total(record: RunRecord) -> int | None:
    names = ("to_do",) if record.state == "running" else ("done", "failed", "unfinished")
    known = [record.counts[name] for name in names if name in record.counts]
    return sum(known) if known else None
