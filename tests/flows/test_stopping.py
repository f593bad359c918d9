"""Signals: the first one is a request, the second one the end."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from flows.stopping import StopRequest, drain_on_signals

SCRIPT = """
import sys, time
from flows.stopping import StopRequest, drain_on_signals
request = StopRequest()
with drain_on_signals(request):
    print("ready", flush=True)
    assert request.event.wait(20)
    print("asked by", request.signal_name, flush=True)
    time.sleep(float(sys.argv[1]))
print("drained", flush=True)
"""


def start(seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_work_end(number):
    process = start(0.3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert output == f"asked by {number.name}\ndrained\n"
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_at_once(number):
    process = start(60)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked by SIGINT\n"
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    assert time.monotonic() - started < 5


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with drain_on_signals(StopRequest()):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_than_the_main_one_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with drain_on_signals(StopRequest()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
