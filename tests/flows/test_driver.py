"""A driver that is told to stop: its runs first, each with time to store what is done, then the worker.

With Prefect's real worker: test_deployment.py.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flows.conftest import ROOT

# Stands where Prefect's worker stands: it starts a run in a session of its own and writes down what it lives to see.
WORKER = """
import pathlib, signal, subprocess, sys, time
folder, drain_s = pathlib.Path(sys.argv[1]), sys.argv[2]
run = subprocess.Popen([sys.executable, "-c", '''
import pathlib, signal, sys, time
folder, drain_s = pathlib.Path(sys.argv[1]), float(sys.argv[2])
def stop(*_):
    (folder / "asked").touch()
    time.sleep(drain_s)
    (folder / "stored").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(folder / "running").touch()
time.sleep(60)
''', str(folder), drain_s], start_new_session=True)
def end(*_):
    (folder / "worker-ended").touch()
    (folder / "run-ended-before-it").write_text(str(run.poll()))
    run.kill()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    time.sleep(0.02)
    (folder / "beat").write_text(str(time.monotonic()))
"""
DRIVER = "import sys; from flows.driver import Driver; sys.exit(Driver(sys.argv[2:]).drive(float(sys.argv[1])))"


def start(folder: Path, *, drain_s: float, timeout_s: float) -> subprocess.Popen[bytes]:
    worker = [sys.executable, "-c", WORKER, str(folder), str(drain_s)]
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(timeout_s), *worker], cwd=ROOT)
    wait_for(folder / "running")
    return process


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path.name
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_runs_end_before_the_worker(tmp_path, number):
    driver = start(tmp_path, drain_s=2.0, timeout_s=30)
    driver.send_signal(number)
    wait_for(tmp_path / "asked")
    # Meanwhile the worker stands still: it takes no other run.
    beat = (tmp_path / "beat").read_text()
    time.sleep(0.5)
    assert (tmp_path / "beat").read_text() == beat
    assert not (tmp_path / "worker-ended").exists()
    assert driver.wait(30) == 0
    assert (tmp_path / "stored").exists()
    assert (tmp_path / "run-ended-before-it").read_text() == "143"


def test_a_run_that_takes_too_long_is_ended(tmp_path):
    driver = start(tmp_path, drain_s=50, timeout_s=1.0)
    driver.terminate()
    assert driver.wait(30) == 0
    assert (tmp_path / "asked").exists()
    assert not (tmp_path / "stored").exists()
    assert (tmp_path / "run-ended-before-it").read_text() == str(-signal.SIGKILL)


def test_a_second_signal_ends_everything_at_once(tmp_path):
    driver = start(tmp_path, drain_s=50, timeout_s=50)
    driver.terminate()
    wait_for(tmp_path / "asked")
    started = time.monotonic()
    driver.terminate()
    assert driver.wait(30) == 0
    assert time.monotonic() - started < 20
    assert (tmp_path / "run-ended-before-it").read_text() == str(-signal.SIGKILL)


def test_a_worker_that_ends_by_itself_ends_the_driver_with_its_code():
    command = [sys.executable, "-c", DRIVER, "1", sys.executable, "-c", "raise SystemExit(7)"]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 7
