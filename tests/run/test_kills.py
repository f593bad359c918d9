"""Runs whose processes are killed at any moment: afterwards the same command does exactly what is missing."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.run.catalogs import Computed, assert_complete, resolved_rows, write_catalog
from tests.run.conftest import is_alive, wait_until
from tests.shared_ray import plain_environment

pytestmark = pytest.mark.slow

NUM_ITEMS = 32
SLOW = {"EZIGEN_TEST_SECONDS_PER_ITEM": "0.25"}


class Driver:
    """A run in a process group of its own, and every process that it started."""

    def __init__(self, catalog: Path, output: Path, *options: str) -> None:
        self.output = output
        self.log = output.parent / f"driver-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.run.driver", str(catalog), str(output), *options],
                env={**plain_environment(), **SLOW},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def wait_for(self, num_computed: int) -> None:
        wait_until(
            lambda: len(Computed(self.output).keys()) >= num_computed or self.process.poll() is not None,
            120,
            f"{num_computed} computed items",
        )
        assert self.process.poll() is None, self.log.read_text()

    def end(self, timeout_s: float = 120) -> dict:
        """The outcome of a run that ends by itself with exit code 0; nothing of it is left."""
        children = self.children()
        code = self.process.wait(timeout_s)
        assert code == 0, self.log.read_text()
        assert_gone(children)
        return json.loads((self.output / "outcome.json").read_text())


def assert_gone(processes: list[psutil.Process]) -> None:
    """Workers, raylet and head die with their driver; Ray's agents may first spend a minute on a farewell."""
    names = {process.pid: name_of(process) for process in processes}
    agents = {pid for pid, name in names.items() if name.endswith(("Agent", "/agent.py", "/agent/main.py"))}
    wait_until(lambda: not [pid for pid in names.keys() - agents if is_alive(pid)], 30, f"the end of {names}")


def name_of(process: psutil.Process) -> str:
    """Its title or, as long as a young process has given itself none, the script that Python runs."""
    try:
        command = process.cmdline()
        return next((part for part in command if part.endswith(".py")), command[0])
    except (psutil.NoSuchProcess, IndexError):
        return process.name() if is_alive(process.pid) else "gone"


@dataclass
class Known:
    """What was stored, and what had been computed, before a run."""

    done: dict[str, str]
    computed: Counter

    @classmethod
    def of(cls, output: Path) -> "Known":
        rows = resolved_rows(output)
        done = {item_id: row.item_key for item_id, row in rows.items() if row.status == "done"}
        return cls(done, Counter(Computed(output).keys()))

    def assert_not_computed_again(self, output: Path) -> None:
        again = Counter(Computed(output).keys()) - self.computed
        assert not set(self.done.values()) & set(again)


def test_whatever_is_killed_the_same_command_does_what_is_missing(tmp_path):
    """One output through a driver killed at its start, one killed at work, a Ray killed at work, and a last run."""
    catalog, output = write_catalog(tmp_path, NUM_ITEMS), tmp_path / "out"
    rng, ever = random.Random(), []

    driver = Driver(catalog, output)
    time.sleep(rng.uniform(0.5, 6.0))
    ever += kill_driver(driver)

    driver = Driver(catalog, output)
    driver.wait_for(rng.randint(1, 9))
    time.sleep(rng.uniform(0.0, 0.5))
    ever += kill_driver(driver)

    known = Known.of(output)
    driver = Driver(catalog, output)
    driver.wait_for(known.computed.total() + 6)
    ever += kill_ray(driver)
    known.assert_not_computed_again(output)
    record = json.loads((output / "run.json").read_text())
    assert record["state"] == "failed"
    assert "ClusterLost" in record["message"]
    assert len(resolved_rows(output)) >= len(known.done) + 2  # what had come back was stored

    known = Known.of(output)
    outcome = Driver(catalog, output).end()
    known.assert_not_computed_again(output)
    computed = Counter(Computed(output).keys()) - known.computed
    assert outcome["state"] == "finished"
    assert outcome["done"] == computed.total() == NUM_ITEMS - len(known.done)
    assert_complete(output, NUM_ITEMS)
    wait_until(lambda: not [process for process in ever if is_alive(process.pid)], 120, "the end of every process")


def kill_driver(driver: Driver) -> list[psutil.Process]:
    children = driver.children()
    driver.process.kill()
    driver.process.wait()
    assert_gone(children)
    return children


def kill_ray(driver: Driver) -> list[psutil.Process]:
    """Every process of Ray at once; the driver notices, stores what it has, and fails."""
    children = driver.children()
    for process in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert driver.process.wait(60) != 0
    assert "ClusterLost" in driver.log.read_text()
    assert_gone(children)
    return children


def test_a_lone_worker_that_is_killed_is_replaced_and_every_item_is_done_once(tmp_path):
    """With one worker there is no mate to take over: what it held waits for the next one."""
    num_items = 14
    catalog, output = write_catalog(tmp_path, num_items), tmp_path / "out"
    driver = Driver(catalog, output, "--workers", "1", "--flush", "0.2")
    driver.wait_for(1)
    wait_until(lambda: resolved_rows(output), 30, "a stored row")
    known = Known.of(output)
    (lone,) = Computed(output).pids()
    os.kill(lone, signal.SIGKILL)
    outcome = driver.end()

    assert (outcome["state"], outcome["total"]) == ("finished", num_items)
    assert (outcome["done"], outcome["failed"]) == (num_items, 0)
    assert_complete(output, num_items)
    known.assert_not_computed_again(output)
    assert len(Computed(output).pids() - {lone}) == 1
    assert any(row.attempts == 2 for row in resolved_rows(output).values())  # it died at work
    computed = Counter(Computed(output).keys())
    assert set(computed) == {row.item_key for row in resolved_rows(output).values()}
    assert computed.total() - num_items <= 4  # no more than the lone one held: two slots, two ahead


def test_sigterm_to_the_process_group_drains_and_leaves_nothing_behind(tmp_path):
    catalog, output = write_catalog(tmp_path, NUM_ITEMS), tmp_path / "out"
    driver = Driver(catalog, output, "--flush", "600", "--shard", "1000")
    driver.wait_for(4)
    os.killpg(driver.process.pid, signal.SIGTERM)
    outcome = driver.end(60)
    assert outcome["state"] == "stopped"
    assert 4 <= outcome["done"] < NUM_ITEMS
    rows = resolved_rows(output)
    assert len(rows) == outcome["done"]
    assert {row.item_key for row in rows.values()} == set(Computed(output).keys())  # nothing in flight was lost
