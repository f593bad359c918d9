"""Log records of a worker on their way to the run that owns it."""

import logging
from collections import deque
from dataclasses import dataclass

_MAX_LINES = 200
_OWN = ("ezigen", "tasks")


@dataclass(frozen=True)
class LogLine:
    """One log record as plain values. `created` is in seconds since 1970."""

    created: float
    level: int
    name: str
    message: str


class LogBuffer(logging.Handler):
    """Keeps the latest records of a worker until they are taken; of other packages only warnings and worse."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
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
        self._lines.append(LogLine(record.created, record.levelno, record.name, self.format(record)))

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
