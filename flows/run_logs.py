"""Log records of the run's own code, on the pages of the flow run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.logging.handlers import APILogHandler

from tasks.monitoring.logs import set_process_ids, wants_json, write_json_lines

LOGGER_NAMES = ("ezigen", "tasks", "flows")


class _FlowRunTag(logging.Filter):
    """Says to which flow run a record belongs: threads that the run starts have no Prefect context of their own."""

    def __init__(self, flow_run_id: UUID) -> None:
        super().__init__()
        self._flow_run_id = str(flow_run_id)

    def filter(self, record: logging.LogRecord) -> bool:
        record.flow_run_id = self._flow_run_id
        return True


@contextmanager
def forward_logs(flow_run_id: UUID, level: int = logging.INFO) -> Iterator[None]:
    """Sends the records of `ezigen`, `tasks` and `flows` (actors' records included) to the flow run's log."""
    set_process_ids(flow_run_id=str(flow_run_id))
    if wants_json():
        write_json_lines()
    handler = APILogHandler(level)
    handler.addFilter(_FlowRunTag(flow_run_id))
    loggers = [logging.getLogger(name) for name in LOGGER_NAMES]
    previous = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(min(level, logger.getEffectiveLevel()))
    try:
        yield
    finally:
        for logger, old_level in zip(loggers, previous, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
        set_process_ids(flow_run_id=None)
