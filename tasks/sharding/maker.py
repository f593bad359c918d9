"""What runs inside Ray Data's actors: opens the work once, then one shard per row."""

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from ezigen.config import ConfigurationError
from ezigen.engine import difference
from tasks.actors.records import LogBuffer, LogLine
from tasks.cluster.environment import SecretVariables
from tasks.monitoring.logs import log_ids
from tasks.sharding.board import MAX_DEATHS
from tasks.sharding.report import ShardReport
from tasks.sharding.work import ShardWork
from tasks.storage.filesystems import be_patient, describe_error
from tasks.storage.traffic import TRAFFIC

logger = logging.getLogger(__name__)

_OPEN_TRIES = 3
_OPEN_PAUSE_S = 1.0

Ending = Literal["made", "failed", "died", "skipped", "misconfigured", "unfit"]
"""made; raised; condemned because of its dead workers; skipped because the run stops; and of the worker itself: its
configuration can never work, or it cannot be started."""


@dataclass(frozen=True)
class Answer:
    """What came of one row of the dataset."""

    shard: str
    ending: Ending
    message: str = ""
    report: ShardReport | None = None
    log: tuple[LogLine, ...] = field(default=())
    counts: Mapping[str, float] = field(default_factory=dict)
    """What the worker has counted since its last answer: seconds.load, and see `tasks.storage.traffic`."""

    def to_json(self) -> str:
        """For the way to the driver."""
        values = {"shard": self.shard, "ending": self.ending, "message": self.message, "counts": dict(self.counts)}
        report = self.report.to_json() if self.report else None
        return json.dumps({**values, "report": report, "log": [dataclasses.asdict(line) for line in self.log]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        report = values.pop("report")
        log = tuple(LogLine(**line) for line in values.pop("log"))
        return cls(**values, report=ShardReport.from_json(report) if report else None, log=log)


class ShardMaker:
    """Ray Data makes one in every worker process. Nothing that goes wrong leaves `__call__` as an exception."""

    def __init__(self, work: ShardWork, board: Any, secrets: SecretVariables) -> None:
        self._work, self._board, self._secrets = work, board, secrets
        self._counted: Mapping[str, float] = {}
        self._load_seconds = 0.0
        self._name = ""
        self._id = ""
        self._log: LogBuffer | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """A row with a shard's name to a row with the answer."""
        answer = self._answer(str(row["shard"]))
        log = () if self._log is None else self._log.take()
        return {"answer": dataclasses.replace(answer, log=log, counts=self._count()).to_json()}

    def _count(self) -> Mapping[str, float]:
        now = {"seconds.load": self._load_seconds, **TRAFFIC.counts()}
        counts, self._counted = difference(now, self._counted), now
        return counts

    def _answer(self, shard: str) -> Answer:
        import ray

        if not self._name:
            trouble = self._open(shard)
            if trouble is not None:
                return trouble
        order = ray.get(self._board.begin.remote(self._id, shard))
        if order == "skip":
            return Answer(shard, "skipped")
        if order == "condemn":
            message = f"its worker died {MAX_DEATHS} times while it made this shard (killed, or out of memory)."
            return Answer(shard, "died", message)
        try:
            return self._make(shard)
        finally:
            self._board.end.remote(self._id)
            _return_memory()

    def _make(self, shard: str) -> Answer:
        started = time.perf_counter()
        try:
            with log_ids(shard=shard):
                report = self._work.make(shard)
        except Exception as error:
            with log_ids(shard=shard):
                logger.exception("shard %s failed", shard)
            return Answer(shard, "failed", describe_error(error))
        seconds = time.perf_counter() - started
        return Answer(shard, "made", report=dataclasses.replace(report, seconds=seconds, worker=self._name))

    # ---- starting

    def _open(self, shard: str) -> Answer | None:
        """None if the work is open now."""
        import ray

        started = time.perf_counter()
        context = ray.get_runtime_context()
        self._id = str(context.get_actor_id())
        name = f"{context.get_node_id()[:8]}/{os.getpid()}"
        self._log = LogBuffer(name)
        self._log.attach()
        if not ray.get(self._board.worker_opens.remote(self._id)):
            return Answer(shard, "unfit", f"a worker died {MAX_DEATHS} times while it loaded what it needs.")
        self._secrets.apply()
        be_patient()
        for tries_left in reversed(range(_OPEN_TRIES)):
            try:
                self._work.open()
            except ConfigurationError as error:
                return Answer(shard, "misconfigured", str(error))
            except Exception as error:
                logger.exception("the worker cannot load what it needs")
                if not tries_left:
                    return Answer(shard, "unfit", describe_error(error))
                time.sleep(_OPEN_PAUSE_S)
            else:
                break
        ray.get(self._board.worker_ready.remote(self._id))
        self._name = name
        self._load_seconds = time.perf_counter() - started
        return None


def _return_memory() -> None:
    """Gives what is free back to the system: pictures of many sizes leave gaps, which would add up over shards."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
