"""Ray started and joined, in processes of their own."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tasks.cluster.environment import SecretVariables, worker_variables
from tests.shared_ray import plain_environment

LOCAL = '''
import json, os, signal, subprocess, sys
from pathlib import Path
import psutil, ray
from ezigen.config import ClusterConfig
from tasks.cluster import connect

JOIN = """
from ezigen.config import ClusterConfig, ConfigurationError
from tasks.cluster import connect
try:
    with connect(ClusterConfig(address=sys.argv[1])): print("joined")
except ConfigurationError as error: print(error)
"""

def join(**environment):
    command = [sys.executable, "-c", "import sys" + JOIN, cluster_address]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True).stdout

handler = lambda *_: None
signal.signal(signal.SIGTERM, handler)
before = dict(os.environ)
found = {}
for round in range(2):
    with connect(ClusterConfig(num_workers=3, cpus_per_worker=1)) as cluster:
        processes = psutil.Process().children(recursive=True)
        sockets = [c for p in processes + [psutil.Process()] for c in p.net_connections("inet") if c.status == "LISTEN"]
        found["listening"] = sorted({c.laddr.ip.removeprefix("::ffff:") for c in sockets})
        found["cores"] = cluster.nodes[0]["CPU"]
        env = ray.get(ray.remote(lambda: dict(os.environ)).options(num_cpus=1).remote())
        found["threads"] = env["OMP_NUM_THREADS"]
        found["offline"] = env.get("HF_HUB_OFFLINE")
        logs = Path(ray._private.worker._global_node.get_session_dir_path())
        cluster.check()
        cluster_address = ray.get_runtime_context().gcs_address
        found["with_token"] = join().strip()
        found["with_another"] = "RAY_AUTH_TOKEN agree" in join(RAY_AUTH_TOKEN="c" * 64)
    found["handler_kept"] = signal.getsignal(signal.SIGTERM) is handler
    found["alive"] = [p.name() for p in processes if p.is_running() and p.status() != "zombie"]
    text = b"".join(path.read_bytes() for path in logs.rglob("*") if path.is_file() and not path.is_symlink())
    found["leaked"] = b"hidden-value" in text
found["left_in_environment"] = [name for name in set(os.environ) - set(before) if name.startswith("RAY_")]
print(json.dumps(found))
'''

JOIN = """
import sys, time
from ezigen.config import ClusterConfig, ConfigurationError
from tasks.cluster import connect
for address in sys.argv[1:]:
    started = time.monotonic()
    try:
        with connect(ClusterConfig(address=address)):
            print("joined")
    except ConfigurationError as error:
        print(f"{time.monotonic() - started:.1f}|{error}")
"""


def run_python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**plain_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_local_ray_is_private_and_leaves_nothing_behind():
    output = run_python(LOCAL, AWS_SECRET_ACCESS_KEY="hidden-value", HF_HUB_OFFLINE="1")
    assert json.loads(output.splitlines()[-1]) == {
        "listening": ["127.0.0.1"],
        "cores": max(3.0, float(len(os.sched_getaffinity(0)))),
        "threads": "1",
        "offline": "1",
        "handler_kept": True,
        "alive": [],
        "leaked": False,
        "with_token": "joined",
        "with_another": True,
        "left_in_environment": [],
    }


@pytest.mark.slow
def test_a_joined_cluster_may_lose_a_node_and_outlives_the_run(tmp_path):
    environment = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "b" * 64,
    }
    code = "import runpy; runpy.run_module('tests.run.node_loss', run_name='__main__')"
    found = json.loads(run_python(code, str(tmp_path), **environment).splitlines()[-1])
    assert found["count"] == 2
    assert found["done"] == list(range(20))
    assert found["deaths"] == 0
    assert 0 < found["losses"] <= 2
    assert found["still_there"]


@pytest.mark.slow
def test_an_address_where_no_ray_answers_is_an_error_within_seconds():
    with socket.socket() as silent, socket.socket() as unused:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        unused.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (unused, silent)]
        lines = run_python(JOIN, *addresses, "auto", "ray://127.0.0.1:10001").splitlines()
    closed, mute, auto, client = (line.split("|", 1) for line in lines)
    assert "nothing answers there" in closed[1]
    assert addresses[0] in closed[1]
    assert "does not answer like a Ray head" in mute[1]
    assert 'write "local"' in auto[1]
    assert 'write "local"' in client[1]
    assert max(float(seconds) for seconds, _ in (closed, mute, auto, client)) < 25


def test_secrets_do_not_show_in_print():
    secrets = SecretVariables.of_process({"AWS_SECRET_ACCESS_KEY": "hidden", "HF_TOKEN": "also", "PATH": "/bin"})
    assert "hidden" not in repr(secrets)
    assert repr(secrets) == "SecretVariables(AWS_SECRET_ACCESS_KEY, HF_TOKEN)"


def test_worker_variables_hold_no_secret():
    variables = worker_variables(3, {"AWS_SECRET_ACCESS_KEY": "hidden", "HF_HUB_OFFLINE": "1"})
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert "hidden" not in variables.values()
