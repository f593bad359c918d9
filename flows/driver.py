"""Prefect's worker as a service that can be stopped: first its runs, then itself.

Prefect's worker, told to stop, kills the processes of its runs at once, and with them the items in flight and the
rows of the last seconds. Here SIGTERM reaches the runs first, all at once; each stores what is done, as it does when
it is cancelled, and only then the worker ends. A second signal ends everything at once.

    python -m flows.driver --pool ezigen --limit 4    # what `prefect worker start` takes
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil

POLL_S = 0.2
END_TIMEOUT_S = 15.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the worker until it ends or a signal asks; returns its exit code, and 0 when it was asked."""
    parser = argparse.ArgumentParser(prog="python -m flows.driver", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--stop-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long runs may take to stop (60); above cluster.grace_period_s of every run",
    )
    options, rest = parser.parse_known_args(arguments)
    return Driver([sys.executable, "-m", "prefect", "worker", "start", *rest]).drive(options.stop_timeout)


class Driver:
    """A running worker, started by `command`, and the signals that asked for its end."""

    def __init__(self, command: Sequence[str]) -> None:
        self._signals = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._count_signal)
        # A group of its own: Ctrl-C in a terminal reaches this process alone.
        self._worker = subprocess.Popen(command, process_group=0)

    def drive(self, stop_timeout_s: float) -> int:
        """Waits for the worker's end, or for the signal to bring it about."""
        while self._worker.poll() is None:
            if self._signals:
                self._stop(stop_timeout_s)
                return 0
            time.sleep(POLL_S)
        return self._worker.returncode

    def _stop(self, timeout_s: float) -> None:
        # Stopped, it takes no new run, and does not take the end of the others for a reason to act.
        self._worker.send_signal(signal.SIGSTOP)
        runs = self._runs()
        print(f"stopping {len(runs)} runs", file=sys.stderr, flush=True)
        members = [process for run in runs for process in (run, *_children(run))]
        _signal_groups(runs, signal.SIGTERM)
        if not _wait(members, timeout_s, lambda: self._signals > 1):
            _signal_groups(runs, signal.SIGKILL)
            _wait(members, END_TIMEOUT_S)
        self._worker.send_signal(signal.SIGCONT)
        self._worker.terminate()
        try:
            self._worker.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()

    def _runs(self) -> list[psutil.Process]:
        """The processes that the worker has started for runs: each leads a group of its own."""
        try:
            children = psutil.Process(self._worker.pid).children()
        except psutil.NoSuchProcess:
            return []
        return [child for child in children if _leads_a_group(child.pid)]

    def _count_signal(self, *_: object) -> None:
        self._signals += 1


def _leads_a_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _signal_groups(leaders: Sequence[psutil.Process], number: signal.Signals) -> None:
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, number)


def _wait(processes: Sequence[psutil.Process], timeout_s: float, give_up: Callable[[], bool] = lambda: False) -> bool:
    """Whether all of them have ended before the time was over, or before `give_up` said so."""
    deadline = time.monotonic() + timeout_s
    while any(map(_is_alive, processes)):
        if give_up() or time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_alive(process: psutil.Process) -> bool:
    # The worker is stopped and collects no children: one that has ended stays as a zombie.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main())
