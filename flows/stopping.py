"""Stopping by signal: the first one asks the run to drain, the second one ends the process at once."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Whether, and by which signal, the run was asked to stop. `event` is what the run watches."""

    event: threading.Event = field(default_factory=threading.Event)
    signal_number: int | None = None

    @property
    def is_made(self) -> bool:
        """True from the first signal on."""
        return self.signal_number is not None

    @property
    def signal_name(self) -> str:
        """SIGINT or SIGTERM; empty without a request."""
        return "" if self.signal_number is None else signal.Signals(self.signal_number).name


@contextmanager
def drain_on_signals(request: StopRequest) -> Iterator[None]:
    """SIGINT and SIGTERM make the request instead of interrupting whatever runs, for as long as the context lasts.

    Prefect's own SIGTERM handler raises in the middle of a statement, which is right where nothing is in flight and
    wrong where finished images wait for their result rows. In a thread other than the main one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        logger.warning("Not in the main thread: a signal ends this run without draining it.")
        yield
        return
    reader, writer = os.pipe()
    threading.Thread(target=_set_on_byte, args=(reader, request.event), name="stop-request", daemon=True).start()

    def handle(number: int, _frame: FrameType | None) -> None:
        if request.is_made:
            # The second signal: the actors end with the process that owns them.
            os._exit(128 + number)
        request.signal_number = number
        # A handler may have interrupted the very code that holds the event's lock, so another thread sets it.
        os.write(writer, b"s")

    previous = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(writer)


def _set_on_byte(reader: int, event: threading.Event) -> None:
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        if pipe.read(1):
            event.set()
