"""Log records of a worker on their way to the run that owns it."""

import logging
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.monitoring.logs import current_ids, set_process_ids

_WORKER_LOGGER = logging.getLogger("ezigen.worker")

_MAX_LINES = 200
_OWN = ("ezigen", "tasks")


@dataclass(frozen=True)
class LogLine:
    """One log record as plain values. `created` is in seconds since 1970."""

    created: float
    level: int
    name: str
    message: str
    ids: Mapping[str, str] = field(default_factory=dict)
    """What the record is about; see `tasks.monitoring.logs`."""


def tell_worker_record(line: LogLine, worker: str = "") -> None:
    """In the process that owns the run: one record of the logger `ezigen.worker`, as old as it is, with its ids."""
    if not _WORKER_LOGGER.isEnabledFor(line.level):
        return
    message = f"[{worker}] {line.message}" if worker else line.message
    record = logging.LogRecord(_WORKER_LOGGER.name, line.level, __file__, 0, message, None, None)
    record.created, record.msecs = line.created, line.created % 1 * 1000
    record.ids = line.ids
    _WORKER_LOGGER.handle(record)


class LogBuffer(logging.Handler):
    """Keeps the latest records of a worker until they are taken; of other packages only warnings and worse.

    From then on every record of this process names the worker and its node.
    """

    def __init__(self, worker: str) -> None:
        super().__init__(logging.INFO)
        set_process_ids(worker=worker, node=socket.gethostname())
        self._lines: deque[LogLine] = deque(maxlen=_MAX_LINES)
        self._num_seen = 0
        self.setFormatter(logging.Formatter("%(message)s"))

    def attach(self) -> None:
        """Listen to every logger of this process."""
        root = logging.getLogger()
        root.addHandler(self)
        for name in _OWN:
            logging.getLogger(name).setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one record."""
        if record.levelno < logging.WARNING and not record.name.startswith(_OWN):
            return
        self._num_seen += 1
        self._lines.append(LogLine(record.created, record.levelno, record.name, self.format(record), current_ids()))

    def take(self) -> tuple[LogLine, ...]:
        """The records since the last time, oldest first; if there were too many, the oldest are only counted."""
        self.acquire()
        try:
            lines, dropped = tuple(self._lines), self._num_seen - len(self._lines)
            self._lines.clear()
            self._num_seen = 0
        finally:
            self.release()
        if dropped:
            note = LogLine(lines[0].created, logging.WARNING, __name__, f"{dropped} earlier log records were dropped")
            return (note, *lines)
        return lines
