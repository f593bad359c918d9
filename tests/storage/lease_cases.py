"""What a lease must do on every store; each test module brings its own output."""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from tasks.storage import Lease, LeaseHeld, LeaseLost
from tasks.storage.holder import Holder


def read_holder(output):
    return Holder.from_json(output.read("lease.json"))


def write_holder(output, **changes):
    """A hold by a process of another machine, of which nothing can be seen but its counter."""
    holder = replace(Holder.here("them", ttl_s=1.0), host="elsewhere", machine="elsewhere", **changes)
    output.write("lease.json", holder.to_json())
    return holder


def reason_of_loss(lease, patience_s=10):
    """What `check` says once the hold is lost."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            lease.check()
        except LeaseLost as error:
            return str(error)
        time.sleep(0.05)
    return "not lost"


class LeaseCases:
    """Needs the fixture `output`."""

    def test_the_next_run_starts_after_the_first_ended(self, output):
        for _ in range(3):
            with Lease(output, "us") as lease:
                lease.check()
                assert not read_holder(output).released
            assert read_holder(output).released

    def test_a_second_run_is_refused_at_once_and_told_by_whom(self, output):
        with Lease(output, "the nightly run"):
            started = time.monotonic()
            with pytest.raises(LeaseHeld, match="in use by the nightly run") as raised:
                Lease(output, "us").acquire()
            assert time.monotonic() - started < 40, "it did not wait for the lease to expire"
            assert output.root_uri in str(raised.value)

    def test_the_hold_ends_with_an_error_too(self, output):
        with pytest.raises(ZeroDivisionError), Lease(output, "us"):
            raise ZeroDivisionError
        with Lease(output, "us") as lease:
            lease.check()

    def test_waiting_ends_when_the_holder_does(self, output):
        first = Lease(output, "first")
        first.acquire()
        threading.Timer(0.5, first.release).start()
        with Lease(output, "second", wait=True) as second:
            second.check()
            assert read_holder(output).owner == "second"

    def test_waiting_can_be_stopped(self, output):
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        with Lease(output, "first"), pytest.raises(LeaseHeld, match="stopped while it waited"):
            Lease(output, "second", wait=True, stop=stop).acquire()

    def test_a_silent_holder_elsewhere_is_taken_over_after_its_ttl_whatever_its_clock_says(self, output):
        write_holder(output, renewed_at="2099-01-01T00:00:00+00:00")
        started = time.monotonic()
        with Lease(output, "us"):
            assert time.monotonic() - started > 1.0
            assert read_holder(output).owner == "us"

    def test_a_beating_holder_elsewhere_is_left_alone_whatever_its_clock_says(self, output):
        holder, ended = write_holder(output, renewed_at="1999-01-01T00:00:00+00:00", ttl_s=60.0), threading.Event()

        def beat(holder):
            while not ended.wait(0.2):
                holder = replace(holder, beat=holder.beat + 1)
                output.write("lease.json", holder.to_json())

        thread = threading.Thread(target=beat, args=(holder,))
        thread.start()
        try:
            with pytest.raises(LeaseHeld, match="in use by them"):
                Lease(output, "us").acquire()
        finally:
            ended.set()
            thread.join()

    def test_a_holder_that_was_replaced_notices_and_leaves_the_other_alone(self, output):
        with Lease(output, "us", ttl_s=1.2) as lease:
            write_holder(output)
            assert "went to them" in reason_of_loss(lease)
        assert read_holder(output).owner == "them"

    def test_the_hold_outlives_its_ttl_while_it_beats(self, output):
        with Lease(output, "us", ttl_s=0.9) as lease:
            deadline = time.monotonic() + 60
            while read_holder(output).beat < 8 and time.monotonic() < deadline:
                time.sleep(0.05)
                lease.check()
            assert read_holder(output).beat >= 8

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 1}', b"\x00" * 100])
    def test_what_a_crash_left_of_a_record_is_no_hold(self, output, content):
        output.write("lease.json", content)
        with Lease(output, "us") as lease:
            lease.check()

    def test_of_many_that_find_an_expired_hold_one_wins(self, output):
        for _ in range(3):
            write_holder(output, ttl_s=0.3)
            assert race(output, num_threads=6) == 1


def race(output, num_threads):
    """How many of several threads that start at the same moment get the hold."""
    barrier, winners = threading.Barrier(num_threads), []

    def run():
        barrier.wait()
        lease = Lease(output, "racer")
        try:
            lease.acquire()
        except LeaseHeld:
            return
        winners.append(lease)

    threads = [threading.Thread(target=run) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lease in winners:
        lease.check()
        lease.release()
    return len(winners)


RACER = """
import sys
from tasks.storage import Lease, LeaseHeld, RunOutput
lease = Lease(RunOutput(sys.argv[1]), "racer")
print("ready", flush=True)
sys.stdin.readline()
try:
    lease.acquire()
    print("won", flush=True)
except LeaseHeld:
    print("held", flush=True)
sys.stdin.readline()
"""


def race_processes(output, num_processes):
    """The same with processes that all hold on until the last has tried."""
    command = [sys.executable, "-c", RACER, output.root_uri]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(num_processes)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    answers = [racer.stdout.readline() for racer in racers]
    for racer in racers:
        racer.communicate("\n")
    assert set(answers) <= {"won\n", "held\n"}
    return answers.count("won\n")
