"""Runs a flow in this process for the command line: a server if there is none, the display, the exit code."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.logging import RichHandler

from ezigen.config import ConfigurationError
from flows.job import Summary, UnfinishedRun
from flows.run_logs import LOGGER_NAMES
from flows.temporary_server import TemporaryServer
from flows.terminal import RunDisplay, RunLines, print_summary
from flows.watching import current_watcher
from tasks.monitoring.logs import wants_json, write_json_lines

EXIT_FAILED = 1
DRAIN_TIMEOUT_S = 10.0


def run_here(flow_name: str, parameters: object) -> int:
    """Runs the flow of that name to its end and returns the exit code. Raises what the flow raised.

    `parameters` is a dataclass whose fields are the flow's parameters.
    """
    # Until the run can be drained there is nothing to lose: end at once, but by the `finally` blocks.
    signal.signal(signal.SIGTERM, _exit_by_signal)
    display = RunLines() if wants_json() else RunDisplay()
    with display, _records_shown(display), _reachable_server(display):
        display.say("planning")
        token = current_watcher.set(display)
        try:
            state = _run_flow(flow_name, parameters)
        finally:
            current_watcher.reset(token)
    value = state.result(raise_on_failure=False)
    if isinstance(value, UnfinishedRun):
        return _end(value.summary)
    if isinstance(value, BaseException):
        raise value
    return _end(value)


def _run_flow(flow_name: str, parameters: object) -> State[Any]:
    flow = getattr(import_module(f"flows.{flow_name}"), flow_name)  # a flow is verb_object = its file
    state: State[Any] = flow(**vars(parameters), return_state=True)
    return state


def _end(summary: Summary) -> int:
    print_summary(summary)
    if summary.stopped_by is not None:
        return 128 + summary.stopped_by
    return EXIT_FAILED if summary.failure else 0


def _exit_by_signal(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


@contextmanager
def _reachable_server(display: RunDisplay) -> Iterator[None]:
    """The server of PREFECT_API_URL, or one that is started for this run."""
    if url := PREFECT_API_URL.value():
        _check_server(url)
        yield
        return
    display.say("starting a temporary Prefect server")
    with TemporaryServer() as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        server.wait_until_ready()
        try:
            yield
        finally:
            # What is still on its way when the server is gone would be sent again and again at exit.
            APILogWorker.drain_all(timeout=DRAIN_TIMEOUT_S)
            EventsWorker.drain_all(timeout=DRAIN_TIMEOUT_S)


def _check_server(url: str) -> None:
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise ConfigurationError(
            f"the Prefect server at PREFECT_API_URL={url} does not answer ({error}); start it (prefect server start), "
            "correct the variable, or unset it to use a temporary server."
        )


@contextmanager
def _records_shown(display: RunDisplay) -> Iterator[None]:
    """Warnings of the run's own code, above the progress bar; every record with --debug, or as JSON lines."""
    if wants_json():
        write_json_lines()
        for name in LOGGER_NAMES:
            logging.getLogger(name).setLevel(min(logging.INFO, display.level))
        yield
        return
    handler = RichHandler(display.level, display.console, show_time=False, show_path=False)
    for name in LOGGER_NAMES:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in LOGGER_NAMES:
            logging.getLogger(name).removeHandler(handler)
