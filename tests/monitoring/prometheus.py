"""A real Prometheus with the project's own configuration, asking the Ray that this process is connected to."""

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.infra.built import INFRA
from tests.monitoring.scraping import metrics_address
from tests.run.conftest import wait_until

FOLDER = INFRA / "monitoring"
MISSING = "needs promtool and prometheus: apt-get install prometheus"
needs_prometheus = pytest.mark.skipif(not (shutil.which("promtool") and shutil.which("prometheus")), reason=MISSING)


def run_promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Prometheus:
    """`url` answers queries."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector. Fails for an expression that is not valid."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=30) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}\n{error.read().decode()}") from error
        assert found["data"]["resultType"] == "vector", expression
        return list(found["data"]["result"])

    def rules(self) -> dict[str, str]:
        """Health of every rule by name."""
        with urllib.request.urlopen(f"{self.url}/api/v1/rules", timeout=30) as answer:
            groups = json.load(answer)["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}


@contextmanager
def started_prometheus(folder: Path) -> Iterator[Prometheus]:
    """Asks once a second, so that a test need not wait for long."""
    for name in ("prometheus.yml", "rules.yaml"):
        text = (FOLDER / name).read_text("utf-8")
        (folder / name).write_text(
            text.replace("_interval: 10s", "_interval: 1s").replace("interval: 15s", "interval: 1s")
        )
    (folder / "targets").mkdir()
    (folder / "targets/ray.json").write_text(json.dumps([{"targets": [metrics_address()]}]))
    port = _free_port()
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
    ]
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _is_ready(url), 60, "Prometheus")
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/-/ready", timeout=5).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
