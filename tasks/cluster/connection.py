"""Ray for the length of a run: started on this machine, or joined."""

import contextlib
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ezigen.config import ConfigurationError, RayConfig
from tasks.cluster.environment import private_ray_variables, worker_variables
from tasks.cluster.placement import NodeResources

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})")
_OBJECT_STORE_BYTES = 200 * 2**20
"""Pictures go through storage; only result rows and small previews pass through Ray."""
_PROBE_TIMEOUT_S = 15.0
_TCP_TIMEOUT_S = 4.0
_END_TIMEOUT_S = 10.0
_START_TRIES = 3
_PROBE = "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1])"
_VITAL = ("gcs_server", "raylet")


class ClusterLost(RuntimeError):  # noqa: N818
    """Ray itself is gone. What has been stored stays; running again continues there."""


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process is connected to."""

    address: str
    nodes: tuple[NodeResources, ...]
    vital_processes: tuple[Any, ...] = field(default=(), repr=False)

    def check(self) -> None:
        """Raises ClusterLost if the Ray that this process started has died. Costs microseconds."""
        for process in self.vital_processes:
            if not _is_alive(process):
                raise ClusterLost(f"Ray's process {process.info['name']} ({process.pid}) has died")


@contextlib.contextmanager
def connect(config: RayConfig) -> Iterator[Cluster]:
    """Ray at `config.address` until the block ends: "local" starts one that dies with this process, HOST:PORT joins.

    Nothing is ever guessed: neither a cluster that happens to run nor a variable decides. SIGTERM's handler is left
    as it was. Raises ConfigurationError, within about 20 s, if the cluster cannot be joined.
    """
    import ray

    if config.address != "local":
        with _join(config) as cluster:
            yield cluster
        return
    if ray.is_initialized():
        raise ConfigurationError(
            'cluster.address is "local", but this process is already connected to a Ray; give its HOST:PORT instead.'
        )
    with private_ray_variables():
        try:
            _start_local(config)
            yield Cluster("local", _nodes(), tuple(_own_processes(_VITAL)))
        finally:
            _end_local()


@contextlib.contextmanager
def _join(config: RayConfig) -> Iterator[Cluster]:
    import ray

    address = config.address
    if ray.is_initialized():
        current = ray.get_runtime_context().gcs_address
        if current != address:
            raise ConfigurationError(f"cluster.address is {address}, but this process is connected to {current}.")
        yield Cluster(address, _nodes())
        return
    _probe(address)
    try:
        with _undisturbed_signals():
            ray.init(address=address, **_init_options(config))
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _cannot_join(address, _first_line(error)) from error
    try:
        yield Cluster(address, _nodes())
    finally:
        ray.shutdown()


def _start_local(config: RayConfig) -> None:
    """Ray gives its own helpers 15 s to come up and dies otherwise, which a busy machine may need more than once."""
    import ray

    for tries_left in reversed(range(_START_TRIES)):
        try:
            with _undisturbed_signals():
                ray.init(
                    address="local",
                    num_cpus=_local_cores(config),
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **_init_options(config),
                )
        except Exception as error:
            if not tries_left:
                raise ClusterLost(f"Ray does not start on this machine: {_first_line(error)}") from error
            logger.warning("Ray did not start (%s); trying again", _first_line(error))
            _end_local()
        else:
            return


def _init_options(config: RayConfig) -> dict[str, Any]:
    num_threads = max(1, int(config.cpus_per_worker))
    return {
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "runtime_env": {"env_vars": worker_variables(num_threads)},
    }


def _local_cores(config: RayConfig) -> int:
    """A named number of workers is placed even if it is more than the machine has cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores, math.ceil(config.num_workers * config.cpus_per_worker))


def _nodes() -> tuple[NodeResources, ...]:
    import ray

    return tuple(node["Resources"] for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _undisturbed_signals() -> Iterator[None]:
    """`ray.init` replaces SIGTERM's handler, and its processes share this one's group: a SIGTERM to the group would
    take the workers away before the run could end in order. Blocked signals are inherited, so they are blocked here.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# ---- joining


def _probe(address: str) -> None:
    """Raises ConfigurationError if nothing usable answers; `ray.init` alone could wait for minutes."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigurationError(
            f'cluster.address is {address!r}; write "local" to start Ray for this run, or HOST:PORT to join a cluster.'
        )
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout=_TCP_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _cannot_join(address, f"nothing answers there ({error})") from error
    try:
        # In a process of its own, because a port that something else listens on makes Ray wait for ever.
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _cannot_join(address, "what listens there does not answer like a Ray head") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise _cannot_join(address, lines[-1][:300] if lines else "it refused")


def _cannot_join(address: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"cannot join the Ray cluster at {address}: {reason}. Check that its head runs there with the same Ray and "
        "Python version, that this machine is one of its nodes (ray start --address=HOST:PORT --num-cpus=0), and that "
        'RAY_AUTH_MODE and RAY_AUTH_TOKEN agree with it; cluster.address "local" needs no cluster.'
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


# ---- ending


def _end_local() -> None:
    """Every process of the Ray that was started here ends, whatever state it is in."""
    import psutil
    import ray

    processes = _own_processes()
    processes += [child for process in processes for child in _children(process)]
    for process in processes:
        if process.info["name"] not in _VITAL and not process.info["name"].startswith("ray::"):
            _kill(process)  # they ignore SIGTERM, and Ray would wait a second for each
    ray.shutdown()
    _, alive = psutil.wait_procs(processes, timeout=_END_TIMEOUT_S)
    for process in alive:
        logger.warning("Ray's process %s (%d) did not end by itself", process.info["name"], process.pid)
        _kill(process)


def _own_processes(names: Sequence[str] = ()) -> list[Any]:
    """The direct children of this process that belong to Ray; all of them, or those with these names."""
    import psutil
    import ray

    home = str(Path(ray.__file__).parent)
    return [
        child
        for child in _with_info(psutil.Process().children())
        if any(home in argument for argument in child.info["cmdline"] or ())
        and (not names or child.info["name"] in names)
    ]


def _children(process: Any) -> list[Any]:
    import psutil

    try:
        return _with_info(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _with_info(processes: Sequence[Any]) -> list[Any]:
    import psutil

    known = []
    for process in processes:
        try:
            process.info = process.as_dict(["name", "cmdline"])
        except psutil.NoSuchProcess:
            continue
        known.append(process)
    return known


def _is_alive(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _kill(process: Any) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
