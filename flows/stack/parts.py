"""The parts of a stack: how each is started, and when it is healthy."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ezigen.config import ConfigurationError
from flows.stack.seaweed import seaweed_command, seaweed_identity
from flows.stack.settings import ROOT, Stack, as_no_root, find_program, write_privately
from flows.stack.standing import make_pool

MONITORING = ROOT / "infra" / "monitoring"
NODE_STORE_BYTES = 200 * 2**20
"""Shared memory of a node: pictures go through storage, only rows and small previews through Ray."""
HTTP_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Part:
    """One program of a stack. is_healthy: asked again and again; a program that is not up yet is not healthy."""

    name: str
    command: tuple[str, ...]
    is_healthy: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    """Parts that have to be healthy before it is started."""
    prepare: Callable[[], None] = lambda: None
    """What is done then, before it is started."""
    stop_signal: str = "TERM"
    stop_timeout_s: int = 15
    about: str = ""
    """Where it is, for people."""


def list_parts(stack: Stack) -> list[Part]:
    """In an order in which each needs only those before it; they are ended in the other. Writes their settings."""
    parts = [_postgres(stack)] if stack.database == "postgresql" else []
    parts += [_prefect_server(stack), _s3(stack), _ray_head(stack)]
    parts += [_ray_node(stack, number) for number in range(1, stack.num_nodes + 1)]
    parts += [_worker(stack)]
    parts += [make(stack) for make, program in _MONITORING if find_program(program)]
    return parts


# ---- Prefect


def _postgres(stack: Stack) -> Part:
    data = stack.folder / "postgres"
    port = stack.ports["postgres"]
    if not (data / "PG_VERSION").exists():
        _make_database(stack, data)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "100",
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    return Part(
        "postgres",
        (*as_no_root(), _program("postgres"), "-D", str(data), *options),
        lambda: _is_ready(port),
        # Fast: it ends the sessions that it has instead of waiting for them.
        stop_signal="INT",
        about=f"127.0.0.1:{port}",
    )


def _make_database(stack: Stack, data: Path) -> None:
    """Into another folder first: one that was left half-way is made again."""
    new = data.with_name("postgres.new")
    shutil.rmtree(new, ignore_errors=True)
    password = stack.folder / "postgres.password"
    write_privately(password, stack.postgres_password)
    command = [*as_no_root(), _program("initdb"), "-D", str(new), "-U", "prefect", "-E", "UTF8", "--locale=C.UTF-8"]
    done = subprocess.run(
        [*command, "--auth=scram-sha-256", f"--pwfile={password}"], capture_output=True, text=True, check=False
    )
    password.unlink()
    if done.returncode != 0:
        raise ConfigurationError(
            f"PostgreSQL's initdb failed: {done.stderr.strip().splitlines()[-1:]}; --database sqlite needs none."
        )
    new.rename(data)


def _is_ready(port: int) -> bool:
    command = [_program("pg_isready"), "--host=127.0.0.1", f"--port={port}", "--timeout=2"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _prefect_server(stack: Stack) -> Part:
    environment = {
        "PREFECT_SERVER_API_AUTH_STRING": stack.auth_string,
        "PREFECT_SERVER_UI_API_URL": stack.api_url,
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(stack.folder / "prefect-ui"),
        "PREFECT_SERVER_METRICS_ENABLED": "true",
        # A minute, the usual interval, is long for somebody who tries a schedule.
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
    }
    if stack.database == "postgresql":
        environment |= {
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(stack.ports["postgres"]),
            "PREFECT_SERVER_DATABASE_USER": "prefect",
            "PREFECT_SERVER_DATABASE_NAME": "postgres",
            "PREFECT_SERVER_DATABASE_PASSWORD": stack.postgres_password,
        }
    port = stack.ports["prefect"]
    return Part(
        "prefect-server",
        (sys.executable, "-m", "prefect", "server", "start", "--host=127.0.0.1", f"--port={port}"),
        lambda: _answers(f"{stack.api_url}/ready", auth=stack.auth_string),
        environment,
        ("postgres",) if stack.database == "postgresql" else (),
        about=f"{stack.url('prefect')}  user admin, password in stack.json",
    )


def _worker(stack: Stack) -> Part:
    port = stack.ports["worker"]
    return Part(
        "worker",
        (
            sys.executable, "-m", "flows.driver", "--stop-timeout=60", "--pool=ezigen", "--type=process", "--limit=4",
            "--name=stack", "--with-healthcheck",
        ),
        lambda: _answers(f"http://127.0.0.1:{port}/health"),
        {
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
            "PREFECT_WORKER_QUERY_SECONDS": "2"},
        after=("prefect-server", "ray-head"),
        prepare=lambda: make_pool(stack),
        stop_timeout_s=90,
        about="Prefect's work pool ezigen",
    )  # fmt: skip


# ---- Ray


def _ray_head(stack: Stack) -> Part:
    """Computes nothing, as on a cluster. A node of this machine, so that drivers need none of their own."""
    return Part(
        "ray-head",
        (
            _program("ray"), *_START, "--head", f"--port={stack.ports['ray']}", "--num-cpus=0", "--num-gpus=0",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={stack.ports['ray-dashboard']}", f"--ray-client-server-port={stack.ports['ray-client']}",
            f"--temp-dir={stack.ray_folder}",
        ),
        lambda: len(alive_nodes(stack)) >= 1,
        about=f"{stack.ray_address}  dashboard {stack.url('ray-dashboard')}, its token is in environment",
    )  # fmt: skip


def _ray_node(stack: Stack, number: int) -> Part:
    """One core; the first has the machine's GPUs as well."""
    name = f"ray-node-{number}"
    return Part(
        name,
        (
            sys.executable, "-m", "flows.stack.ray_node", *_START, f"--address={stack.ray_address}", "--num-cpus=1",
            f"--resources={json.dumps({name: 1})}", *(("--num-gpus=0",) if number > 1 else ()),
        ),
        lambda: any(name in node.get("resourcesTotal", {}) for node in alive_nodes(stack)),
        after=("ray-head",),
        about="1 core",
    )  # fmt: skip


_START = (
    "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
    f"--object-store-memory={NODE_STORE_BYTES}",
)  # fmt: skip


def alive_nodes(stack: Stack) -> list[dict[str, Any]]:
    """Ray's nodes as its dashboard knows them; none while that does not answer."""
    try:
        answer = httpx.get(
            f"{stack.url('ray-dashboard')}/nodes?view=summary",
            headers={"Authorization": f"Bearer {stack.ray_token}"},
            timeout=HTTP_TIMEOUT_S,
        )
        summary = answer.json()["data"]["summary"]
    except (httpx.HTTPError, ValueError, KeyError):
        return []
    return [node["raylet"] for node in summary if node.get("raylet", {}).get("state") == "ALIVE"]


# ---- S3


def _s3(stack: Stack) -> Part:
    data = stack.folder / "s3"
    data.mkdir(exist_ok=True)
    owner = seaweed_identity("ezigen", stack.s3_key, stack.s3_secret, ["Admin", "Read", "Write", "List", "Tagging"])
    identities = stack.folder / "s3.json"
    write_privately(identities, json.dumps({"identities": [owner]}))
    return Part(
        "s3",
        seaweed_command(_program("weed"), data, identities, stack.ports),
        lambda: _answers(f"{stack.url('s3')}/healthz"),
        about=f"{stack.url('s3')}  bucket ezigen, keys in environment",
    )


# ---- monitoring


def _prometheus(stack: Stack) -> Part:
    folder = stack.folder / "prometheus"
    folder.mkdir(exist_ok=True)
    config = folder / "prometheus.yml"
    write_privately(config, json.dumps(_scraping(stack), indent=2))  # JSON is YAML
    return Part(
        "prometheus",
        (
            _program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{stack.ports['prometheus']}", "--storage.tsdb.retention.time=7d",
        ),
        lambda: _answers(f"{stack.url('prometheus')}/-/ready"),
        about=stack.url("prometheus"),
    )  # fmt: skip


def _scraping(stack: Stack) -> dict[str, object]:
    """infra/monitoring/prometheus.yml with the stack's own ports and password."""
    name, password = stack.auth_string.split(":")
    prefect = {
        "job_name": "prefect",
        "metrics_path": "/api/metrics",
        "basic_auth": {"username": name, "password": password},
        "static_configs": [{"targets": [f"127.0.0.1:{stack.ports['prefect']}"]}],
    }
    nodes = stack.ray_folder / "prom_metrics_service_discovery.json"
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
        "rule_files": [str(MONITORING / "rules.yaml")],
        "scrape_configs": [
            {"job_name": "ray", "file_sd_configs": [{"files": [str(nodes)], "refresh_interval": "15s"}]},
            prefect,
        ],
    }


def _grafana(stack: Stack) -> Part:
    home = os.environ.get("GRAFANA_HOME", "/usr/share/grafana")
    return Part(
        "grafana",
        (_program("grafana"), "server", f"--homepath={home}"),
        lambda: _answers(f"{stack.url('grafana')}/api/health"),
        {
            "GF_SERVER_HTTP_ADDR": "127.0.0.1",
            "GF_SERVER_HTTP_PORT": str(stack.ports["grafana"]),
            "GF_PATHS_DATA": str(stack.folder / "grafana"),
            "GF_PATHS_PROVISIONING": str(MONITORING / "grafana" / "provisioning"),
            "GF_SECURITY_ADMIN_PASSWORD": stack.prefect_password,
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "PROMETHEUS_URL": stack.url("prometheus"),
            "DASHBOARD_FOLDER": str(MONITORING),
        },
        about=f"{stack.url('grafana')}  user admin, password as Prefect's",
    )


_MONITORING = ((_prometheus, "prometheus"), (_grafana, "grafana"))


# ---- common


def _program(name: str) -> str:
    path = find_program(name)
    if path is None:
        raise ConfigurationError(f"the program {name} is missing; install it: pip install 'ezigen-pipeline[stack]'")
    return path


def _answers(url: str, auth: str = "") -> bool:
    try:
        user, _, password = auth.partition(":")
        answer = httpx.get(url, auth=(user, password) if auth else None, timeout=HTTP_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK
