"""What is done to runs, how such a run may end, and what it takes until everything is there."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from prefect.states import Cancelling

from flows.stack.parts import alive_nodes
from flows.stack.settings import find_program
from tests.faults.site import GONE_WITHIN_S, Run, Site, Work, find_processes, kill
from tests.faults.works import ShiftedClockWork, SmallDiskWork
from tests.run.conftest import wait_until

DOWN_S = 60.0


@dataclass(frozen=True)
class Fault:
    """inject: does it, and returns when it is over. ends: the states that the run may end in. works: kinds of runs."""

    name: str
    inject: Callable[[Run], None]
    ends: tuple[str, ...] = ("Completed",)
    works: tuple[str, ...] = ("catalog", "features", "training")
    leaves_nothing: bool = False
    """Whether no actor is left GONE_WITHIN_S later."""


def kill_actor(run: Run) -> None:
    kill(run.actors()[0])


def kill_raylet(run: Run) -> None:
    """Of a node that computes; Supervisor brings another one up, as an autoscaler does."""
    pid = run.site.supervisor.pid_of("ray-node-1")
    raylets = [process for process in psutil.Process(pid).children(recursive=True) if process.name() == "raylet"]
    kill(raylets[0])


def take_spot_node(run: Run) -> None:
    """A notice, as a cloud gives it, and some seconds later the node is gone."""
    site = run.site
    # One that was killed before is held for alive a while: the last to come is the one.
    *_, node = sorted(
        (node for node in alive_nodes(site.stack) if "ray-node-1" in node["resourcesTotal"]),
        key=lambda node: int(node["startTimeMs"]),
    )
    command = [
        str(find_program("ray")), "drain-node", f"--address={site.stack.ray_address}", f"--node-id={node['nodeId']}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=10",
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, **site.stack.environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    time.sleep(5)
    for process in psutil.Process(site.supervisor.pid_of("ray-node-1")).children(recursive=True):
        kill(process)


def kill_head(run: Run) -> None:
    """Its control service, without which every node gives up; Supervisor starts head and nodes again."""
    kill(find_processes(run.site, "gcs_server")[0])


def kill_driver(run: Run) -> None:
    kill(run.driver())


def terminate_driver(run: Run) -> None:
    kill(run.driver(), signal.SIGTERM)


def cancel(run: Run) -> None:
    """What the pages and the API do."""
    run.site.client.set_flow_run_state(run.run_id, Cancelling())


def stop_server(run: Run) -> None:
    supervisor = run.site.supervisor
    supervisor.stop_part("prefect-server")
    time.sleep(DOWN_S)
    supervisor.start_part("prefect-server")
    run.site.wait_healthy()


def stop_database(run: Run) -> None:
    supervisor = run.site.supervisor
    if "postgres" not in supervisor.states():
        return
    supervisor.stop_part("postgres")
    time.sleep(DOWN_S / 3)
    supervisor.start_part("postgres")
    run.site.wait_healthy()


def kill_prefect_worker(run: Run) -> None:
    """The service and Prefect's worker in it. A run that notices ends in order, as at SIGTERM."""
    pid = run.site.supervisor.pid_of("worker")
    service = psutil.Process(pid)
    victims = [service, *(child for child in service.children() if "worker" in child.cmdline())]
    for process in victims:
        kill(process)


def misbehave(fault: str, seconds: float) -> Callable[[Run], None]:
    """S3 answers like that to everything for so long."""

    def inject(run: Run) -> None:
        proxy = run.site.proxy
        proxy.always = fault  # type: ignore[assignment]
        time.sleep(seconds)
        proxy.always = None

    return inject


def start_second_run(run: Run) -> None:
    """It is refused at once, and says who holds the output."""
    second = run.site.start(run.work, run.output_uri)
    state = second.wait_ended()
    assert state.is_failed(), state
    assert "in use by" in state.message, state.message


def fill_disk(run: Run) -> None:
    """It fills by itself; then the run fails, and somebody makes it larger."""
    run.wait_ended(400)
    assert isinstance(run.work, SmallDiskWork)
    run.work.grow(run.output_uri)


def shift_clock(offset: str) -> Callable[[Run], None]:
    """As a time server does that puts a machine's clock right."""

    def inject(run: Run) -> None:
        assert isinstance(run.work, ShiftedClockWork)
        run.work.set(offset)

    return inject


def nothing(run: Run) -> None:
    """What happens is in the catalog."""


FAULTS = [
    Fault("actor killed", kill_actor),
    Fault("raylet killed", kill_raylet),
    Fault("spot notice, node gone", take_spot_node),
    Fault("Ray's head killed", kill_head, ("Completed", "Failed")),
    Fault("driver killed (kill -9)", kill_driver, ("Crashed",), leaves_nothing=True),
    Fault("driver terminated (SIGTERM)", terminate_driver, ("Crashed",), leaves_nothing=True),
    Fault("cancelled through the API", cancel, ("Cancelled",), leaves_nothing=True),
    Fault("Prefect's server away for 60 s", stop_server, works=("long catalog",)),
    Fault("its database away for 20 s", stop_database, works=("long catalog",)),
    Fault("Prefect's worker killed", kill_prefect_worker, ("Completed", "Crashed"), works=("long catalog",)),
    Fault("S3 answers 503 for 10 s", misbehave("503", 10)),
    Fault("S3 resets connections for 10 s", misbehave("reset", 10), works=("catalog",)),
    Fault("S3 stalls for 20 s", misbehave("stall", 20), works=("long catalog",)),
    Fault("S3 truncates answers for 10 s", misbehave("truncate", 10), works=("catalog",)),
    Fault("S3 flips bits on the way in for 10 s", misbehave("flip", 10)),
    Fault("S3 refuses the keys for 10 s", misbehave("403", 10), ("Completed", "Failed"), works=("catalog",)),
    Fault("two runs on one output", start_second_run, works=("long catalog",)),
    Fault("the output's disk is full", fill_disk, ("Failed",), works=("catalog on a disk",)),
    Fault("the driver's clock jumps ahead by 10 min", shift_clock("+10m"), works=("catalog with a clock",)),
    Fault("the driver's clock jumps back by 20 min", shift_clock("-10m"), works=("catalog with a clock",)),
    Fault("an item that takes its worker along (out of memory)", nothing, works=("poisoned catalog",)),
]


@dataclass(frozen=True)
class Outcome:
    """One try. recover_s: from the end of the fault until more was stored; whole_s: until everything was there."""

    work: str
    fault: str
    ended: str
    repeats: int
    lost: int
    duplicated: int
    damaged: int
    left_over: int
    recover_s: float
    whole_s: float


def try_fault(site: Site, fault: Fault, work: Work) -> Outcome:
    """A run that it happens to, and the same run again until it is complete. Raises AssertionError where the run does
    not end as it should.
    """
    site.wait_healthy()
    run = site.start(work, work.new_output(site))
    run.wait_stored(work.inject_at)
    fault.inject(run)
    began, before = time.monotonic(), run.num_stored()
    recovered = [0.0] if before == work.whole else []
    if fault.leaves_nothing:
        wait_until(lambda: not run.actors(), GONE_WITHIN_S, "end of every actor")

    def is_over() -> bool:
        if not recovered and run.num_stored() > before:
            recovered.append(time.monotonic() - began)
        return run.state().is_final()

    wait_until(is_over, 400, "end of the run")
    ended = run.state()
    assert ended.name in fault.ends, f"{ended.name}: {ended.message}"
    repeats, last = 0, run
    if not ended.is_completed():  # what it stored on its way out is no recovery
        before = run.num_stored()
        recovered.clear()
    while not last.state().is_completed():
        repeats += 1
        assert repeats <= 2, f"{last.state().name}: {last.state().message}"
        site.wait_healthy()
        last = site.start(work, run.output_uri, again=True)
        last.wait_stored(min(before + 1, work.whole), 300)
        if not recovered:
            recovered.append(time.monotonic() - began)
        last.wait_ended(400)
    whole_s = time.monotonic() - began
    damage = work.damage(site, run.output_uri)
    return Outcome(
        work.name, fault.name, ended.name, repeats, damage.lost, damage.duplicated, damage.damaged, damage.left_over,
        recovered[0] if recovered else whole_s, whole_s,
    )  # fmt: skip
