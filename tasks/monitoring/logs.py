"""Log records as JSON lines, with the ids of what they are about. Readable text stays the default."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

FORMAT_VARIABLE = "EZIGEN_LOG_FORMAT"
ID_NAMES = ("run_id", "flow_run_id", "shard", "item_id", "worker", "node")

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|AUTH_STRING|API_KEY|ACCESS_KEY", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_MIN_SECRET_CHARS = 8
"""Shorter values are no secrets, and replacing them would tear words apart."""

_process_ids: dict[str, str] = {}
_ids: ContextVar[Mapping[str, str]] = ContextVar("log_ids", default=MappingProxyType({}))


def wants_json() -> bool:
    """Whether EZIGEN_LOG_FORMAT=json is set."""
    return os.environ.get(FORMAT_VARIABLE, "").lower() == "json"


def set_process_ids(**ids: str | None) -> None:
    """Ids of every record of this process from now on, whatever thread it comes from; None takes one back."""
    for name, value in ids.items():
        if value is None:
            _process_ids.pop(name, None)
        else:
            _process_ids[name] = value


@contextmanager
def log_ids(**ids: str) -> Iterator[None]:
    """Ids of the records that this thread makes until the block ends."""
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


def current_ids() -> dict[str, str]:
    """The ids of a record that is made here and now."""
    return {**_process_ids, **_ids.get()}


class JsonLines(logging.Formatter):
    """One JSON object per record: timestamp (UTC), level, logger, message, exception where there is one, and ids.

    A record's attribute `ids` goes before those of this process: it comes from a worker. Nothing else of the record is
    written, and no value of an environment variable that is a secret.
    """

    def __init__(self) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        ids = {**current_ids(), **getattr(record, "ids", {})}
        if "flow_run_id" not in ids and getattr(record, "flow_run_id", None):
            ids["flow_run_id"] = str(record.flow_run_id)  # type: ignore[attr-defined]  # Prefect's own records
        values = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
            **{name: ids[name] for name in ID_NAMES if name in ids},
        }
        if record.exc_info:
            values["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(values, ensure_ascii=False)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without the secrets that this process was given, and without passwords in addresses."""
    for name, value in environment.items():
        if len(value) >= _MIN_SECRET_CHARS and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return _IN_URL.sub("***@", text)


def write_json_lines() -> None:
    """From now on the records of this process go to stderr as JSON lines, instead of what wrote them to the terminal.

    Handlers that send them elsewhere, as to the pages of a flow run, stay. Doing it again changes nothing.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if _is_for_people(handler)]:
        root.removeHandler(handler)
    if not any(isinstance(handler.formatter, JsonLines) for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        root.addHandler(handler)


def _is_for_people(handler: logging.Handler) -> bool:
    is_terminal = getattr(handler, "stream", None) in (sys.stderr, sys.stdout) or hasattr(handler, "console")
    return is_terminal and not isinstance(handler.formatter, JsonLines)
