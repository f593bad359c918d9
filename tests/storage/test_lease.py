import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ezigen.config import ConfigurationError
from tasks.storage import Lease, LeaseHeld, RunOutput
from tasks.storage.holder import Holder
from tests.storage.lease_cases import LeaseCases, race, race_processes, read_holder, reason_of_loss

HOLD = """
import sys, time
from ezigen.config import ConfigurationError
from tasks.storage import Lease, LeaseLost, RunOutput
lease = Lease(RunOutput(sys.argv[1]), "another process", ttl_s=float(sys.argv[2]))
lease.acquire()
print("held", flush=True)
sys.stdin.readline()
try:
    lease.check()
    print("kept", flush=True)
except LeaseLost as error:
    print("lost", error, flush=True)
lease.release()
"""


@pytest.fixture
def hold(output):
    """Starts a process that holds the output until it gets a line."""
    processes = []

    def hold(ttl_s=60.0):
        command = [sys.executable, "-c", HOLD, output.root_uri, str(ttl_s)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


class TestFolder(LeaseCases):
    pass


def test_one_at_a_time_in_memory(tmp_path):
    output = RunOutput(f"memory:/{tmp_path}")
    for _ in range(2):
        with Lease(output, "us"), pytest.raises(LeaseHeld):
            Lease(output, "them").acquire()
    assert race(output, num_threads=4) == 1


def test_a_killed_holder_of_this_machine_is_taken_over_at_once(output, hold):
    process = hold()
    with pytest.raises(LeaseHeld, match="another process"):
        Lease(output, "us").acquire()
    process.kill()
    process.wait()
    started = time.monotonic()
    with Lease(output, "us"):
        assert time.monotonic() - started < 40, "it did not wait for the lease to expire"


def test_a_killed_holder_that_nobody_waited_for_is_dead_too(output, hold):
    process = hold()
    process.kill()
    time.sleep(0.2)
    with Lease(output, "us"):
        assert process.returncode is None, "the process is a zombie here"


def test_a_process_number_that_was_used_again_is_not_the_holder(output):
    output.write("lease.json", replace(Holder.here("them", 60.0), process_start="1").to_json())
    with Lease(output, "us"):
        assert read_holder(output).owner == "us"


def test_a_holder_in_another_container_is_not_judged_by_its_process_number(output):
    holder = replace(Holder.here("them", 60.0), pid=2**22 + 1)
    assert holder.is_dead()
    assert not replace(holder, machine=holder.machine + "x").is_dead()


def test_a_frozen_holder_is_replaced_and_learns_of_it(output, hold):
    process = hold(ttl_s=1.0)
    process.send_signal(signal.SIGSTOP)
    with Lease(output, "us", wait=True) as lease:
        process.send_signal(signal.SIGCONT)
        answer, _ = process.communicate("\n")
        assert answer.startswith("lost")
        assert "went to us" in answer
        lease.check()


def test_a_frozen_holder_that_nobody_replaced_goes_on(hold):
    process = hold(ttl_s=0.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1)
    process.send_signal(signal.SIGCONT)
    answer, _ = process.communicate("\n")
    assert answer == "kept\n"


def test_of_processes_that_race_for_a_dead_hold_one_wins(output, hold):
    process = hold()
    process.kill()
    process.wait()
    assert race_processes(output, num_processes=4) == 1


@pytest.mark.parametrize("obstacle", ["a file in the way", "a folder in the way"])
def test_an_output_that_cannot_be_written_is_named(tmp_path, obstacle):
    if obstacle == "a file in the way":
        (tmp_path / "out").touch()
    else:
        (tmp_path / "out/lease.json").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=f"output_uri {tmp_path}/out cannot be written"):
        Lease(RunOutput(str(tmp_path / "out")), "us").acquire()


def test_many_races_on_a_new_output(tmp_path):
    for n in range(20):
        assert race(RunOutput(str(tmp_path / str(n))), num_threads=4) == 1


def test_a_removed_lease_is_a_lost_one(output, tmp_path):
    with Lease(output, "us", ttl_s=0.6) as lease:
        (tmp_path / "out/lease.json").unlink()
        assert "lease.json was removed" in reason_of_loss(lease)
