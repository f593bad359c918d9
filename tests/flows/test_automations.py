"""infra/automations.yaml on a real server: applied twice, and doing what it says."""

import http.server
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.flows import flow
from prefect.states import Failed, Running

from ezigen.config import ConfigurationError
from flows.automations import apply_automations
from tests.flows.conftest import ROOT, Server

FILE = ROOT / "infra" / "automations.yaml"
NAMES = ["ezigen silent run", "ezigen failed run", "ezigen late run", "ezigen late run, given up"]


@flow(name="watched")
def watched() -> None:
    """A flow of which only the record is of interest."""


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """The file with changes: written(lambda automations: ...)."""

    def write(change: Callable[[list], None]) -> Path:
        content = yaml.safe_load(FILE.read_text())
        change(content["automations"])
        path = tmp_path / "automations.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def told() -> Iterator[tuple[str, queue.Queue]]:
    """A webhook's address, and what is sent to it."""
    messages: queue.Queue[dict] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", messages
        server.shutdown()


def test_applied_again_they_are_changed_in_place(reporting_here: Server, written):
    apply_automations(FILE)
    assert apply_automations(FILE) == [(name, "unchanged") for name in NAMES]

    def wait_longer(automations: list) -> None:
        automations[0]["trigger"]["within"] = 120

    assert apply_automations(written(wait_longer))[0] == (NAMES[0], "updated")
    with reporting_here.client() as client:
        (silent,) = client.read_automations_by_name(NAMES[0])
        assert silent.trigger.within.total_seconds() == 120
    assert apply_automations(FILE)[0] == (NAMES[0], "updated")


def test_what_prefect_would_ignore_or_refuse_is_named(reporting_here, written, tmp_path):
    def misspell(automations: list) -> None:
        automations[1]["trigers"] = automations[1].pop("trigger")

    with pytest.raises(ConfigurationError, match=r"'ezigen failed run': unknown keys \['trigers'\]"):
        apply_automations(written(misspell))

    def break_action(automations: list) -> None:
        automations[0]["actions"][0]["type"] = "set-on-fire"

    with pytest.raises(ConfigurationError, match="'ezigen silent run'"):
        apply_automations(written(break_action))
    with pytest.raises(ConfigurationError, match="no block 'slack-webhook/nobody'"):
        apply_automations(FILE, "slack-webhook/nobody")
    with pytest.raises(ConfigurationError, match="no file of automations"):
        apply_automations(tmp_path / "absent.yaml")


def test_a_failed_run_is_told_and_a_silent_one_is_closed(reporting_here: Server, written, told):
    """Of silence the shortest that Prefect allows."""
    address, messages = told
    block = CustomWebhookNotificationBlock(
        name="people", url=address, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    block.save("people", overwrite=True)

    def hurry(automations: list) -> None:
        automations[0]["trigger"]["within"] = 10

    apply_automations(written(hurry), "custom-webhook/people")
    with reporting_here.client() as client:
        failed = client.create_flow_run(watched, name="night-1", tags=["ezigen"])
        stranger = client.create_flow_run(watched, name="stranger", tags=["other"])
        silent = client.create_flow_run(watched, name="night-2", tags=["ezigen"])
        for run in (failed, stranger):
            client.set_flow_run_state(run.id, Failed(message="9 of 10 items failed"), force=True)
        client.set_flow_run_state(silent.id, Running(), force=True)
        emit_event(
            "prefect.flow-run.heartbeat",
            resource={"prefect.resource.id": f"prefect.flow-run.{silent.id}", "prefect.resource.name": "night-2"},
            related=[{"prefect.resource.id": "prefect.tag.ezigen", "prefect.resource.role": "tag"}],
        )
        EventsWorker.drain_all(timeout=10)
        first = messages.get(timeout=60)
        assert first["subject"] == "EZIGen run night-1 is Failed"
        assert "watched / night-1: 9 of 10 items failed" in first["body"]
        deadline = time.monotonic() + 90
        while client.read_flow_run(silent.id).state.is_running():
            assert time.monotonic() < deadline
            time.sleep(0.5)
        state = client.read_flow_run(silent.id).state
    assert state.is_crashed()
    assert "the process that drove it is gone" in state.message
    # Two messages follow, of the silence and of the crash that it led to; none is of the stranger.
    subjects = {messages.get(timeout=60)["subject"] for _ in range(2)}
    assert subjects == {"EZIGen run night-2 went silent", "EZIGen run night-2 is Crashed"}
    apply_automations(FILE)
