"""`ezigen up` and `ezigen down` with every part for real, and the shorter faults on what they start."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ezigen.config import ConfigurationError
from flows.stack.settings import ROOT, Stack
from flows.stack.supervisor import Supervisor
from tests.faults.faults import FAULTS, try_fault
from tests.faults.site import NODE_VARIABLES, Site, deploy, open_site
from tests.faults.works import CatalogWork
from tests.run.conftest import wait_until
from tests.shared_ray import plain_environment

pytestmark = pytest.mark.slow

SHORT = (
    "raylet killed",
    "driver killed (kill -9)",
    "cancelled through the API",
    "S3 flips bits on the way in for 10 s",
)


def ezigen(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, without a word of another server or Ray."""
    environment = {name: value for name, value in plain_environment().items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "flows.command_line", *map(str, arguments)],
        env={**environment, **NODE_VARIABLES},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )


@dataclass
class Started:
    folder: Path
    told: subprocess.CompletedProcess[str]

    @property
    def stack(self) -> Stack:
        stack = Stack.load(self.folder)
        assert stack is not None
        return stack


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """One stack for the tests of this file, which ends with its last one."""
    folder = tmp_path_factory.mktemp("stack") / "st"
    started = Started(folder, ezigen("up", folder, "--try"))
    yield started
    ezigen("down", folder)


@pytest.fixture(scope="module")
def site(started: Started, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(started.stack, tmp_path_factory.mktemp("site")) as site:
        deploy(site.client, [CatalogWork()])
        yield site


def test_one_command_starts_deploys_and_tries_all_of_it(started):
    assert started.told.returncode == 0, started.told.stdout + started.told.stderr
    lines = [line for line in started.told.stdout.splitlines() if line.startswith(("good", "bad"))]
    assert [line for line in lines if line.startswith("bad")] == []
    assert len(lines) == 4 + ("prometheus" in started.told.stdout)
    assert "Completed: 5 done, 1 failed" in started.told.stdout


def test_up_again_changes_nothing(started):
    supervisor = Supervisor(started.stack)
    before = {name: supervisor.pid_of(name) for name in supervisor.states()}
    told = ezigen("up", started.folder)
    assert told.returncode == 0, told.stderr
    assert {name: supervisor.pid_of(name) for name in supervisor.states()} == before
    assert "holds a stack of 2 nodes" in ezigen("up", started.folder, "--nodes", 3).stderr


def test_it_listens_on_the_loopback_interface_alone(started):
    listening = [
        connection.laddr
        for process in Supervisor(started.stack).processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 10
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_its_secrets_are_in_files_of_their_owner_alone(started):
    stack = started.stack
    secrets = (stack.prefect_password, stack.postgres_password, stack.ray_token, stack.s3_secret)
    for process in Supervisor(stack).processes():
        command = " ".join(process.cmdline())
        assert not [secret for secret in secrets if secret in command], process
    assert stat.S_IMODE(started.folder.stat().st_mode) == 0o700
    for name in ("stack.json", "environment", "s3.json", "supervisord.conf"):
        assert stat.S_IMODE((started.folder / name).stat().st_mode) == 0o600
    assert not any(secret in started.told.stdout + started.told.stderr for secret in secrets)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.name in SHORT], ids=lambda fault: fault.name)
def test_a_fault_costs_nothing(site, fault):
    outcome = try_fault(site, fault, CatalogWork(24))
    assert (outcome.lost, outcome.duplicated, outcome.damaged, outcome.left_over) == (0, 0, 0, 0), outcome


def test_a_part_that_dies_comes_back(started):
    supervisor = Supervisor(started.stack)
    before = supervisor.pid_of("s3")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: supervisor.pid_of("s3") not in (0, before), 30, "another S3")


def test_down_ends_everything_even_what_nobody_supervises(started):
    """The last one: it ends the stack."""
    stack = started.stack
    supervisor = Supervisor(stack)
    os.kill(int((stack.folder / "supervisord.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: not supervisor.runs(), 10, "end of Supervisor")
    assert len(supervisor.processes()) > 5
    told = ezigen("down", started.folder)
    assert told.returncode == 0, told.stderr
    assert supervisor.processes() == []
    assert not stack.ray_folder.exists()
    with socket.socket() as one:
        assert one.connect_ex(("127.0.0.1", stack.ports["prefect"])) != 0
    assert ezigen("down", started.folder, "--delete").returncode == 0
    assert not started.folder.exists()
    assert "holds no stack" in ezigen("down", started.folder).stderr


def test_settings_of_another_version_are_refused(tmp_path):
    stack = Stack.make(tmp_path, 1, "sqlite")
    assert Stack.load(tmp_path) == stack
    path = tmp_path / "stack.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ConfigurationError, match="written by another version"):
        Stack.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Stack.load(tmp_path)
