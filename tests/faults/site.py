"""A stack with a deployment whose workers need no networks, a proxy that misbehaves before its S3, and runs on it."""

import contextlib
import hashlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from uuid import UUID, uuid4

import psutil
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State

from flows.stack import standing
from flows.stack.parts import list_parts
from flows.stack.settings import BUCKET, MARK, ROOT, Stack
from flows.stack.supervisor import Supervisor
from tasks.catalog.results import ResultRow
from tasks.storage import Locations, RunOutput
from tasks.storage.filesystems import open_filesystem
from tasks.storage.ledger import ResultsLedger
from tests.faulty_proxy import FaultyProxy, run_faulty_proxy
from tests.run.catalogs import write_catalog

SECONDS_PER_ITEM = "0.2"
FLUSH_INTERVAL_S = 0.5
DEPLOYMENT = "personalize_catalog/faults"
GONE_WITHIN_S = 10.0


@dataclass
class Site:
    """What the runs of a suite share."""

    stack: Stack
    supervisor: Supervisor
    proxy: FaultyProxy
    client: SyncPrefectClient
    folder: Path
    catalogs: dict[str, str] = field(default_factory=dict)

    def wait_healthy(self, timeout_s: float = 180) -> None:
        """Until every part is up again, with the nodes that it should have."""
        parts = list_parts(self.stack)
        wait_until(lambda: all(part.is_healthy() for part in parts), "healthy parts", timeout_s)

    def catalog(self, num_items: int, prompts: dict[int, str] | None = None) -> str:
        """A catalog in the bucket; the same one for the same contents."""
        key = f"{num_items}-{hashlib.sha256(repr(prompts).encode()).hexdigest()[:8]}"
        if key not in self.catalogs:
            path = write_catalog(self.folder / key, num_items, prompts)
            filesystem = open_filesystem("s3", self.stack.storage_options)
            for file in path.parent.iterdir():
                filesystem.pipe_file(f"{BUCKET}/faults/{key}/{file.name}", file.read_bytes())
            self.catalogs[key] = f"s3://{BUCKET}/faults/{key}/catalog.csv"
        return self.catalogs[key]

    def start(self, output: str, num_items: int, prompts: dict[int, str] | None = None, **cluster: object) -> "Run":
        """A run of the deployment, given to the stack's worker."""
        parameters = {
            "inputs": {"catalog_uri": self.catalog(num_items, prompts), "output_uri": output},
            "model": {"model": "mini"},
            "cluster": {
                "address": self.stack.ray_address,
                "num_workers": self.stack.num_nodes,
                "num_slots": 2,
                "num_ahead": 1,
                "shard_size": 4,
                "flush_interval_s": FLUSH_INTERVAL_S,
                "grace_period_s": 10,
                "lease_ttl_s": 10,
                **cluster,
            },
        }
        deployment = self.client.read_deployment_by_name(DEPLOYMENT)
        variables = {"env": {"AWS_ENDPOINT_URL": self.proxy.url}}
        run = self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters, job_variables=variables)
        return Run(self, UUID(str(run.id)), output, num_items)


@dataclass
class Run:
    """One flow run on an output."""

    site: Site
    run_id: UUID
    output_uri: str
    num_items: int

    @property
    def output(self) -> RunOutput:
        """Read past the proxy."""
        return RunOutput(self.output_uri, Locations(storage_options=self.site.stack.storage_options))

    def state(self) -> State:
        return self.site.client.read_flow_run(self.run_id).state

    def num_stored(self) -> int:
        """Items with a stored row."""
        return len({row.item_key for row in self.output.read_result_rows()})

    def wait_stored(self, num_items: int, timeout_s: float = 180) -> None:
        """Until so many items have a row. Fails if the run ends before."""

        def enough() -> bool:
            if self.num_stored() >= num_items:
                return True
            state = self.state()
            assert not state.is_final() or self.num_stored() >= num_items, f"{state.name}: {state.message}"
            return False

        wait_until(enough, f"{num_items} stored items", timeout_s)

    def wait_ended(self, timeout_s: float = 300) -> State:
        """Its final state. A run that retries a stage has none yet."""
        wait_until(lambda: self.state().is_final(), "end of the run", timeout_s)
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


def actors(site: Site) -> list[psutil.Process]:
    """The workers that make images."""
    return find_processes(site, "ray::DoomedWorker")


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        os.kill(process.pid, number)


@dataclass(frozen=True)
class Damage:
    """What an output that should be complete lacks, or has twice. All zero: nothing was harmed."""

    lost: int
    duplicated: int
    damaged: int
    left_over: int

    @classmethod
    def of(cls, run: Run, failed: int = 0) -> "Damage":
        """lost: items without a row, or without their image. duplicated: results of one item, more than one.
        damaged: images that are not the bytes that were stored. left_over: objects that belong to nothing.
        """
        output = run.output
        rows: list[ResultRow] = list(ResultsLedger(output).rows())
        done = [row for row in rows if row.status == "done"]
        stored = Counter(row.item_key for row in output.read_result_rows() if row.status == "done")
        filesystem, root = output.locations.filesystem(output.root), output.root.path
        objects = {path.removeprefix(f"{root}/") for path in filesystem.find(root)}
        images = {path for path in objects if path.startswith("images/")}
        wanted = {row.image_uri for row in done}
        there = [row for row in done if row.image_uri in objects]
        damaged = sum(not is_whole(filesystem.cat_file(f"{root}/{row.image_uri}"), row) for row in there)
        return cls(
            lost=run.num_items - len(done) - failed + len(wanted - images),
            duplicated=sum(stored.values()) - len(stored),
            damaged=damaged,
            left_over=sum(".partial" in path for path in objects),
        )


def is_whole(data: bytes, row: ResultRow) -> bool:
    """Whether an image is what its row says, and can be opened."""
    if hashlib.sha256(data).hexdigest() != row.image_sha256:
        return False
    Image.open(BytesIO(data)).load()
    return True


def new_output() -> str:
    """A place in the bucket that nothing was written to."""
    return f"s3://{BUCKET}/outputs/fault-{uuid4().hex[:12]}"


def wait_until(condition: Callable[[], object], what: str, timeout_s: float) -> float:
    """Seconds until it was true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + timeout_s, f"no {what} within {timeout_s:.0f} s"
        time.sleep(0.2)
    return time.monotonic() - began


@contextlib.contextmanager
def run_site(folder: Path, num_nodes: int = 2) -> Iterator[Site]:
    """A stack of its own, ended and deleted afterwards."""
    stack = Stack.make(folder / "stack", num_nodes)
    supervisor = Supervisor(stack)
    # The nodes' workers inherit what their node was started with.
    os.environ |= {"EZIGEN_TEST_SECONDS_PER_ITEM": SECONDS_PER_ITEM, "PYTHONPATH": str(ROOT)}
    try:
        parts = list_parts(stack)
        supervisor.start(parts)
        for _ in supervisor.start_parts(parts, {"worker": lambda: standing.make_pool(stack)}):
            pass
        standing.fill_bucket(stack)
        standing.automate(stack)
        with (
            run_faulty_proxy(stack.url("s3")) as proxy,
            standing.environment_of(stack),
            get_client(sync_client=True) as client,
        ):
            deploy(client)
            yield Site(stack, supervisor, proxy, client, folder)
    finally:
        supervisor.shut_down(240)
        left = [process.pid for process in psutil.process_iter() if has_mark(process, stack)]
        assert not left, f"processes were left: {left}"


def has_mark(process: psutil.Process, stack: Stack) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return process.pid != os.getpid() and process.environ().get(MARK) == str(stack.folder)
    return False


def deploy(client: SyncPrefectClient) -> None:
    """The flow of tests/faults/light_flow.py."""
    from tests.faults.light_flow import personalize_catalog

    client.create_deployment(
        client.create_flow(personalize_catalog),
        "faults",
        entrypoint="tests/faults/light_flow.py:personalize_catalog",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        work_pool_name=standing.POOL,
        tags=["ezigen"],
    )
