"""A Prefect server for one command, for people who run none: it lives exactly as long as the command."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ezigen.config import ConfigurationError

START_TIMEOUT_S = 180.0
_PR_SET_PDEATHSIG = 1


class TemporaryServer:
    """`prefect server start` without pages and services, on a free port of the loopback interface.

    Prefect starts one by itself too, but in the terminal's process group, where Ctrl-C ends it before the run has
    reported how it ended, and without a tie to this process, so that it outlives a `kill -9`.
    Its database is Prefect's usual one: a later `prefect server start` shows the runs.
    """

    def __init__(self) -> None:
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit

    @property
    def api_url(self) -> str:
        """The value for PREFECT_API_URL."""
        return f"http://127.0.0.1:{self._port}/api"

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "prefect", "server", "start", "--no-services", "--no-ui"]
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self._port), "--log-level", "ERROR"],
            env={name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
            preexec_fn=_die_with_parent(),  # noqa: PLW1509 - only a prepared system call
        )
        return self

    def wait_until_ready(self) -> None:
        """Returns once the server answers. Raises ConfigurationError with its last words if it does not."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise ConfigurationError(
                    f"Prefect's temporary server did not start: {self._last_words()}\n"
                    "Start one yourself (prefect server start) and set PREFECT_API_URL, or see `ezigen doctor`."
                )
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=2) as response:  # noqa: S310 - our own
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _last_words(self) -> str:
        if self._process is None or self._process.poll() is None:
            return f"no answer within {START_TIMEOUT_S:.0f} s"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _die_with_parent() -> Callable[[], None] | None:
    """What the child runs before its program: on Linux, ask the kernel to kill it when the parent dies.

    Not by SIGTERM, which a server that is still starting heeds only when it has started.
    """
    if not sys.platform.startswith("linux"):
        return None
    # Loaded here, because between fork and exec nothing may be imported or allocated.
    prctl = ctypes.CDLL(None).prctl

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask_kernel
