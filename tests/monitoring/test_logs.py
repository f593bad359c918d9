"""Records as JSON lines: which ids they carry, from where, and what they never carry."""

import io
import json
import logging
import os
import subprocess
import sys
import threading

import pytest

from tasks.actors.records import LogBuffer, LogLine, tell_worker_record
from tasks.monitoring import logs
from tasks.monitoring.logs import JsonLines, current_ids, log_ids, redact, set_process_ids

SECRET = "wJalrXUtnFEMI-K7MDENG"


@pytest.fixture(autouse=True)
def no_ids(monkeypatch):
    monkeypatch.setattr(logs, "_process_ids", {})


@pytest.fixture
def stream():
    """What the loggers of the project write as JSON lines."""
    text, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonLines())
    root.addHandler(handler)
    logging.getLogger("ezigen").setLevel(logging.INFO)
    yield text
    root.removeHandler(handler)
    logging.getLogger("ezigen").setLevel(logging.NOTSET)


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_with_its_ids(stream):
    set_process_ids(run_id="r1", flow_run_id="f1")
    with log_ids(item_id="shoe-1"):
        logging.getLogger("ezigen.x").info("two\nlines, %s", "ü")
    logging.getLogger("ezigen.x").info("later")
    first, second = lines(stream)
    assert first.pop("timestamp").endswith("+00:00")
    assert first == {
        "level": "INFO",
        "logger": "ezigen.x",
        "message": "two\nlines, ü",
        "run_id": "r1",
        "flow_run_id": "f1",
        "item_id": "shoe-1",
    }
    assert "item_id" not in second


def test_an_exception_comes_with_its_traceback(stream):
    try:
        int("odd")
    except ValueError:
        logging.getLogger("ezigen.x").exception("failed")
    (line,) = lines(stream)
    assert line["message"] == "failed"
    assert line["exception"].endswith("ValueError: invalid literal for int() with base 10: 'odd'")


def test_items_side_by_side_keep_their_ids():
    seen = {}

    def work(name: str) -> None:
        with log_ids(item_id=name):
            together.wait()
            seen[name] = current_ids()["item_id"]

    together = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"a": "a", "b": "b"}


def test_a_workers_record_keeps_its_ids_and_its_time(stream):
    set_process_ids(run_id="r1", flow_run_id="f1")
    line = LogLine(
        1_700_000_000.25, logging.WARNING, "tasks.x", "slow", {"item_id": "i", "worker": "worker-3", "node": "n"}
    )
    tell_worker_record(line, "worker-3")
    assert lines(stream) == [
        {
            "timestamp": "2023-11-14T22:13:20.250+00:00",
            "level": "WARNING",
            "logger": "ezigen.worker",
            "message": "[worker-3] slow",
            "run_id": "r1",
            "flow_run_id": "f1",
            "item_id": "i",
            "worker": "worker-3",
            "node": "n",
        }
    ]


def test_a_buffer_takes_the_ids_of_the_moment():
    buffer = LogBuffer("worker-1")
    record = logging.makeLogRecord({"name": "tasks.x", "levelno": logging.INFO, "msg": "read"})
    with log_ids(item_id="i"):
        buffer.handle(record)
    (line,) = buffer.take()
    assert {"item_id": "i", "worker": "worker-1"}.items() <= line.ids.items()
    assert line.ids["node"]


def test_secrets_are_not_written(stream, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:hunter2hunter2")
    logging.getLogger("ezigen.x").warning("tried %s at https://me:pw@host/x with admin:hunter2hunter2", SECRET)
    (line,) = lines(stream)
    assert line["message"] == "tried *** at https://***@host/x with ***"


@pytest.mark.parametrize("name", ["PATH", "RAY_AUTH_MODE", "AWS_REGION"])
def test_what_is_no_secret_stays(name):
    assert redact("a long enough value", {name: "long enough"}) == "a long enough value"


def test_a_short_value_tears_no_words_apart():
    assert redact("a token", {"HF_TOKEN": "to"}) == "a token"


def test_errors_of_the_command_line_are_lines_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "flows.command_line", "status", str(tmp_path)],
        env={**os.environ, "EZIGEN_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = [json.loads(text) for text in done.stderr.splitlines()]
    assert (line["level"], line["logger"]) == ("ERROR", "flows.terminal")
    assert "no run has written here" in line["message"]
