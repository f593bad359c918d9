"""A stack with a deployment whose workers need no networks, a proxy that misbehaves before its S3, and runs on it."""

import contextlib
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State

from flows.stack import standing
from flows.stack.parts import list_parts
from flows.stack.settings import BUCKET, DEFAULT_NODES, ROOT, Stack
from flows.stack.start import start_stack
from flows.stack.supervisor import Supervisor
from tasks.storage import Locations
from tasks.storage.filesystems import open_filesystem
from tests.faulty_proxy import FaultyProxy, run_faulty_proxy
from tests.run.conftest import wait_until

NODE_VARIABLES = {"EZIGEN_TEST_SECONDS_PER_ITEM": "0.2", "PYTHONPATH": str(ROOT)}
DEPLOYMENT = "faults"
GONE_WITHIN_S = 10.0


@dataclass
class Site:
    """What the runs of a suite share."""

    stack: Stack
    supervisor: Supervisor
    proxy: FaultyProxy
    client: SyncPrefectClient
    folder: Path

    def wait_healthy(self, timeout_s: float = 180) -> None:
        """Until every part is up again, with the nodes that it should have."""
        parts = list_parts(self.stack)
        wait_until(lambda: all(part.is_healthy() for part in parts), timeout_s, "healthy parts")

    @property
    def locations(self) -> Locations:
        """The bucket, past the proxy."""
        return Locations(storage_options=self.stack.storage_options)

    @property
    def filesystem(self) -> Any:
        """The same as a filesystem."""
        return open_filesystem("s3", self.stack.storage_options)

    def start(self, work: "Work", output_uri: str, *, again: bool = False) -> "Run":
        """A run of a kind of work, given to the stack's Prefect worker; its S3 is the proxy. again: after one that did
        not complete.
        """
        deployment = self.client.read_deployment_by_name(f"{work.flow}/{DEPLOYMENT}")
        variables = {"env": {"AWS_ENDPOINT_URL": self.proxy.url, **work.environment}}
        run = self.client.create_flow_run_from_deployment(
            deployment.id, parameters=work.parameters(self, output_uri, again=again), job_variables=variables
        )
        return Run(self, work, UUID(str(run.id)), output_uri)


class Work(ABC):
    """A kind of run: what it is asked to do, how far it is, and whether what it stored is what it should be."""

    name: str
    flow: str
    entrypoint: str
    actor: str
    """What the titles of its actors' processes begin with."""
    inject_at: int
    """How much is stored when a fault happens."""
    whole: int
    """How much is stored in the end."""
    environment: Mapping[str, str] = MappingProxyType({})
    """Of the process that drives the run."""

    def new_output(self, site: Site) -> str:
        """A place that nothing was written to: in the bucket."""
        return f"s3://{BUCKET}/outputs/fault-{uuid4().hex[:12]}"

    @abstractmethod
    def parameters(self, site: Site, output_uri: str, *, again: bool = False) -> dict[str, Any]:
        """Of the flow."""

    @abstractmethod
    def num_stored(self, site: Site, output_uri: str) -> int:
        """Of `whole`, what is stored so far."""

    @abstractmethod
    def damage(self, site: Site, output_uri: str) -> "Damage":
        """Of a finished output."""


@dataclass(frozen=True)
class Damage:
    """What a finished output lacks, has twice, has wrongly, or has that belongs to nothing. All zero: no harm."""

    lost: int
    duplicated: int
    damaged: int
    left_over: int


@dataclass
class Run:
    """One flow run on an output."""

    site: Site
    work: Work
    run_id: UUID
    output_uri: str

    def state(self) -> State:
        return self.site.client.read_flow_run(self.run_id).state

    def num_stored(self) -> int:
        return self.work.num_stored(self.site, self.output_uri)

    def actors(self) -> list[psutil.Process]:
        """The processes that do the work."""
        return find_processes(self.site, self.work.actor)

    def wait_stored(self, wanted: int, timeout_s: float = 240) -> None:
        """Until so much is stored. Fails if the run ends before."""

        def enough() -> bool:
            if self.num_stored() >= wanted:
                return True
            state = self.state()
            assert not state.is_final() or self.num_stored() >= wanted, f"{state.name}: {state.message}"
            return False

        wait_until(enough, timeout_s, f"{wanted} stored")

    def wait_ended(self, timeout_s: float = 300) -> State:
        """Its final state. A run that retries a stage has none yet."""
        wait_until(lambda: self.state().is_final(), timeout_s, "end of the run")
        return self.state()

    def driver(self) -> psutil.Process:
        """The process of the flow run."""
        found = [process for process in self.site.supervisor.processes() if is_driver_of(process, self.run_id)]
        assert found, "no process drives the run"
        return min(found, key=lambda process: process.create_time())


def is_driver_of(process: psutil.Process, run_id: UUID) -> bool:
    with contextlib.suppress(psutil.Error):
        is_ours = process.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == run_id.hex
        return is_ours and "prefect" in " ".join(process.cmdline())
    return False


def find_processes(site: Site, title: str) -> list[psutil.Process]:
    """Processes of the stack whose title or program begins with, or whose command holds, such a text."""
    found = []
    for process in site.supervisor.processes():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if process.name().startswith(title) or command.startswith(title) or f"/{title}" in command:
                found.append(process)
    return found


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        os.kill(process.pid, number)


@contextlib.contextmanager
def run_site(folder: Path, num_nodes: int = DEFAULT_NODES) -> Iterator[Site]:
    """A stack of its own, ended and deleted afterwards."""
    stack = Stack.make(folder / "stack", num_nodes)
    supervisor = Supervisor(stack)
    # The nodes' workers inherit what their node was started with.
    os.environ |= NODE_VARIABLES
    try:
        for _ in start_stack(stack):
            pass
        with open_site(stack, folder) as site:
            yield site
    finally:
        supervisor.shut_down(240)
        assert not supervisor.processes()


@contextlib.contextmanager
def open_site(stack: Stack, folder: Path) -> Iterator[Site]:
    """A stack that runs, its nodes with NODE_VARIABLES."""
    with (
        run_faulty_proxy(stack.url("s3")) as proxy,
        standing.environment_of(stack),
        get_client(sync_client=True) as client,
    ):
        yield Site(stack, Supervisor(stack), proxy, client, folder)


def deploy(client: SyncPrefectClient, works: Iterable[Work]) -> None:
    """A deployment for each kind of work."""
    for work in works:
        client.create_deployment(
            client.create_flow_from_name(work.flow),
            DEPLOYMENT,
            entrypoint=work.entrypoint,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
            work_pool_name=standing.POOL,
            tags=["ezigen"],
        )
