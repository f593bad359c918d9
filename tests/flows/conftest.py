"""One real Prefect server for all tests of the flows, and the command line, here or in processes of its own."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows.command_line import app
from tests.shared_ray import plain_environment
from tests.tiny import build_tiny_stack

ROOT = Path(__file__).parent.parent.parent
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Server:
    """A Prefect server on the loopback interface with a home of its own."""

    api_url: str
    environment: dict[str, str]

    def prefect(self, *arguments: str) -> str:
        """Runs `prefect ...` against this server."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """A client of this server."""
        with temporary_settings({PREFECT_API_URL: self.api_url}), get_client(sync_client=True) as client:
            yield client


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    inherited = {name: value for name, value in plain_environment().items() if not name.startswith("PREFECT_")}
    environment = {**inherited, **QUIET, "PREFECT_HOME": str(home)}
    environment["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"] = "5"
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)]
    log = (home / "server.log").open("wb")
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    api_url = f"http://127.0.0.1:{port}/api"
    try:
        _wait_for(f"{api_url}/health", process)
        yield Server(api_url, {**environment, "PREFECT_API_URL": api_url})
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server does not answer"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the real classes that draws nothing, quickly; adapter/ and dinov2/ lie inside."""
    return build_tiny_stack(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def reporting_here(prefect_server: Server) -> Iterator[Server]:
    """Flows that are called in this process report to the server."""
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        yield prefect_server
        APILogWorker.drain_all(timeout=10)
        EventsWorker.drain_all(timeout=10)


@dataclass
class Command:
    """A command that runs; its output is collected in files."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait(self, timeout_s: float = 240.0) -> int:
        return self.process.wait(timeout=timeout_s)

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = 180.0) -> None:
        """Fails if the condition does not come true while the command runs."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended before {what}: {self.stdout}{self.stderr}"
            assert time.monotonic() < deadline, f"no {what}: {self.stdout}{self.stderr}"
            time.sleep(0.05)


@dataclass
class CommandLine:
    """Starts `ezigen` as people do, with the real or with light workers."""

    folder: Path
    environment: dict[str, str]
    started: list[Command] = field(default_factory=list)

    def start(self, *arguments: object, light: bool = False, **environment: str) -> Command:
        module = "tests.flows.light_cli" if light else "flows.command_line"
        folder = self.folder / f"command-{len(self.started)}"
        folder.mkdir()
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                env={**self.environment, **environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.started.append(Command(process, folder))
        return self.started[-1]

    def run(self, *arguments: object, light: bool = False, **environment: str) -> Command:
        command = self.start(*arguments, light=light, **environment)
        command.wait()
        return command


@dataclass(frozen=True)
class Told:
    """What a command printed and how it ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def ezigen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Told]]:
    """`ezigen` in this process: the same words and codes without seconds of imports, where no process is the matter.

    It reports to a server only in a test that has `reporting_here`; commands that start Ray belong in `command_line`.
    """
    monkeypatch.chdir(ROOT)
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    for console in logging.getLogger("prefect").handlers:  # as the command's own environment has it
        monkeypatch.setattr(console, "level", logging.CRITICAL)

    def run(*arguments: object) -> Told:
        told = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="ezigen")
        assert told.exception is None or isinstance(told.exception, SystemExit), told.exception
        return Told(told.exit_code, told.stdout, told.stderr)

    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where temporary servers keep their database, which takes them long to make."""
    return tmp_path_factory.mktemp("prefect-home")


@pytest.fixture
def command_line(tmp_path: Path, prefect_home: Path) -> Iterator[CommandLine]:
    """`ezigen` without a Prefect server; what is left running at the end of a test is killed."""
    inherited = {name: value for name, value in plain_environment().items() if not name.startswith("PREFECT_")}
    folder = tmp_path / "commands"
    folder.mkdir()
    line = CommandLine(folder, {**inherited, **QUIET, "PREFECT_HOME": str(prefect_home)})
    yield line
    for command in line.started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()


@pytest.fixture
def reporting_line(command_line: CommandLine, prefect_server: Server) -> CommandLine:
    """`ezigen` that reports to the server."""
    command_line.environment |= {
        name: value for name, value in prefect_server.environment.items() if name.startswith("PREFECT_")
    }
    return command_line
