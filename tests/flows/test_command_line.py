"""`ezigen`: what it prints, its exit codes and, in processes of its own, what signals do to it."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import typer
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.command_line import plain_errors
from tasks.catalog.results import ResultRow
from tasks.storage import RunOutput
from tasks.storage.lease import Lease
from tests.flows.conftest import Command, CommandLine
from tests.run.catalogs import Computed, assert_complete, write_catalog

GONE = "ftp://shop.invalid/cup.png"
LIGHT = ("--workers", 2, "--slots", 2, "--set", "cluster.flush_interval_s=0.3", "--set", "cluster.shard_size=4")
LATE_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
SLOW = {"EZIGEN_TEST_SECONDS_PER_ITEM": "0.4"}


def refused_catalog(folder: Path, num_items: int = 2) -> Path:
    """A catalog whose rows are all refused: a run of it needs no Ray."""
    return write_catalog(folder, num_items, subject_uri=dict.fromkeys(range(num_items), GONE))


def stored_rows(output: Path) -> list[ResultRow]:
    return list(RunOutput(str(output)).read_result_rows())


def wait_for_rows(command: Command, output: Path, num_rows: int = 1) -> None:
    command.wait_until(lambda: len(stored_rows(output)) >= num_rows, f"{num_rows} result rows")


def assert_nothing_left(command: Command) -> None:
    """Every process of the command's session ends soon: its server, its Ray, its workers.

    Not counted are two agents of Ray that hold nothing and notice the end of a killed Ray only after a minute.
    """
    deadline = time.monotonic() + 30
    while left := [process for process in processes_of(command) if process.info["name"] not in LATE_AGENTS]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def processes_of(command: Command) -> list[psutil.Process]:
    """The living processes of the command's session, with name and command line."""
    found = psutil.process_iter(["name", "cmdline", "status"])
    return [p for p in found if _session_of(p) == command.process.pid and p.info["status"] != psutil.STATUS_ZOMBIE]


def _session_of(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return 0


# ---- a whole run


def test_personalize_makes_images_and_says_what_it_did(tmp_path, reporting_line: CommandLine, tiny_model: Path):
    model = tiny_model
    catalog = write_catalog(tmp_path / "shop", 4, subject_uri={2: "missing.png", 3: GONE})
    output = tmp_path / "out"
    command = reporting_line.run(
        *("personalize", catalog, output, "--model", model, "--adapter", model / "adapter"),
        *("--image-encoder", model / "dinov2", "--steps", 3, "--workers", 1, "--slots", 2),
        *("--max-failed-share", 0.5, "--set", "sampler.loops.min_loops=1", "--set", "sampler.loops.max_loops=1"),
    )
    assert command.process.returncode == 0, command.stderr
    assert_complete(output, 4, failed={"item-2", "item-3"})
    assert "4 rows: 3 to do, 0 done before, 1 refused" in command.stderr
    assert "2 done, 2 failed" in command.stdout
    assert "image_missing" in command.stdout
    assert "seconds per image" in command.stdout
    assert f"report: {output / 'report.html'}" in command.stdout
    assert "Traceback" not in command.stderr


def test_stopped_killed_and_repeated_a_run_is_complete(tmp_path, reporting_line: CommandLine, tiny_model: Path):
    """SIGTERM and Ctrl-C keep what is finished, kill -9 loses no stored row, and nothing stored is made again."""
    catalog, output = write_catalog(tmp_path / "shop", 24), tmp_path / "evicted"
    arguments = ("personalize", catalog, output, "--model", tiny_model, "--adapter", tiny_model / "adapter", *LIGHT)

    evicted = reporting_line.start(*arguments, light=True, **SLOW)
    wait_for_rows(evicted, output)
    started = time.monotonic()
    evicted.process.send_signal(signal.SIGTERM)
    assert evicted.wait() == 143, evicted.stderr
    assert time.monotonic() - started < 25
    assert "left; run again to continue" in evicted.stdout
    kept = {row.item_key for row in stored_rows(output)}
    assert 0 < len(kept) < 24
    assert set(Computed(output).keys()) == kept
    assert json.loads((output / "run.json").read_text())["state"] == "stopped"
    assert_nothing_left(evicted)
    assert last_state(reporting_line, output.name).type is StateType.CRASHED

    interrupted = reporting_line.start(*arguments, light=True, **SLOW)
    wait_for_rows(interrupted, output, len(kept) + 1)
    os.killpg(interrupted.process.pid, signal.SIGINT)  # as a terminal does
    assert interrupted.wait() == 130, interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    assert last_state(reporting_line, output.name).type is StateType.CANCELLED

    kept = {row.item_key for row in stored_rows(output)}
    killed = reporting_line.start(*arguments, light=True, **SLOW)
    wait_for_rows(killed, output, len(kept) + 1)
    killed.process.kill()
    killed.wait()
    assert_nothing_left(killed)

    kept = {row.item_key for row in stored_rows(output)}
    num_computed = len(Computed(output).keys())
    last = reporting_line.run(*arguments, light=True)
    assert last.process.returncode == 0, last.stderr
    assert_complete(output, 24)
    assert kept.isdisjoint(Computed(output).keys()[num_computed:])


def test_a_finished_run_has_nothing_to_do(tmp_path, ezigen, reporting_here):
    arguments = ("personalize", refused_catalog(tmp_path / "shop"), tmp_path / "out")
    first = ezigen(*arguments)
    assert first.returncode == 1
    again = ezigen(*arguments)
    assert again.returncode == 0, again.stderr
    assert "nothing to do: 0 done, 2 failed before" in again.stdout
    assert "Traceback" not in again.stderr


def test_an_output_in_use_is_refused_with_code_3(tmp_path, ezigen, reporting_here):
    with Lease(RunOutput(str(tmp_path / "out")), "somebody else"):
        command = ezigen("personalize", refused_catalog(tmp_path / "shop"), tmp_path / "out")
    assert command.returncode == 3
    assert "is in use by somebody else" in command.stderr
    assert "Traceback" not in command.stderr


def last_state(line: CommandLine, name: str) -> State:
    """The state of the latest flow run with this name, as the server has it."""
    chosen = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    api_url = line.environment["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=chosen, sort=FlowRunSort.START_TIME_DESC, limit=1)
    return run.state


# ---- a temporary server


def test_without_a_server_one_lives_as_long_as_the_command(tmp_path, command_line: CommandLine):
    catalog, output = refused_catalog(tmp_path / "shop"), tmp_path / "out"
    first = command_line.run("personalize", catalog, output)
    assert first.process.returncode == 1
    assert "starting a temporary Prefect server" in first.stderr
    assert "2 of 2 items failed" in first.stdout
    assert (output / "report.html").is_file()
    assert_nothing_left(first)


def test_a_killed_command_leaves_no_server_behind(tmp_path, command_line: CommandLine):
    command = command_line.start("personalize", refused_catalog(tmp_path / "shop"), tmp_path / "out")
    command.wait_until(lambda: psutil.Process(command.process.pid).children(), "the server")
    (server,) = psutil.Process(command.process.pid).children()
    command.process.kill()
    command.wait()
    assert not psutil.wait_procs([server], timeout=20)[1]


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", 0], "sampler.num_steps: Input should be greater than or equal to 1"),
        (["--mode", "fast"], "sampler.mode"),
        (["--preset", "fast"], "--preset 'fast' is unknown; use one of auto, paper, released, embedded"),
        (["--set", "cluster.speed=9"], "cluster has no field 'speed'"),
        (["--adapter", "none"], 'model.adapter "none" cannot show a subject'),
        (["--model", "nowhere/at/all"], "no such folder"),
        (["--workers", "many"], "--workers"),
    ],
)
def test_a_wrong_setting_is_one_line_and_code_2(tmp_path, ezigen, arguments, says):
    command = ezigen("personalize", refused_catalog(tmp_path), tmp_path / "out", *arguments)
    assert command.returncode == 2
    assert says in command.stderr
    assert "Traceback" not in command.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_catalog_is_found_before_anything_starts(tmp_path, ezigen):
    command = ezigen("personalize", tmp_path / "absent.csv", tmp_path / "out")
    assert command.returncode == 2
    assert "absent.csv" in command.stderr
    assert "Prefect" not in command.stderr


def test_a_server_that_does_not_answer_is_a_mistake_too(tmp_path, command_line: CommandLine):
    command = command_line.run(
        "personalize", refused_catalog(tmp_path), tmp_path / "out", PREFECT_API_URL="http://127.0.0.1:9/api"
    )
    assert command.process.returncode == 2
    assert "http://127.0.0.1:9/api does not answer" in command.stderr
    assert "Traceback" not in command.stderr


def test_an_unexpected_error_is_told_without_a_traceback(capsys):
    with pytest.raises(typer.Exit) as caught, plain_errors():
        raise OSError("the disk is full")
    told = capsys.readouterr().err
    assert caught.value.exit_code == 1
    assert "OSError: the disk is full" in told
    assert "running again continues" in told
    assert "Traceback" not in told


def test_debug_shows_where_a_mistake_was_found(tmp_path, command_line: CommandLine):
    command = command_line.run("--debug", "plan", tmp_path / "absent.csv", tmp_path / "out")
    assert command.process.returncode == 2
    assert "Traceback" in command.stderr


# ---- plan, results


def test_plan_counts_and_lists_refused_rows(tmp_path, ezigen):
    catalog = write_catalog(tmp_path / "shop", 5, subject_uri={4: GONE})
    command = ezigen("plan", catalog, tmp_path / "out", "--limit", 3)
    assert command.returncode == 0, command.stderr
    lines = [" ".join(line.split()) for line in command.stdout.splitlines()]
    assert "rows 5" in lines
    assert "to do 3" in lines
    assert any(line.startswith("5 item-4 location_unknown_scheme") for line in lines)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def finished_output(tmp_path: Path) -> Path:
    """An output with two done rows and two failed ones, as a run leaves it."""
    from datetime import UTC, datetime

    from ezigen.config import ErrorCode

    def row(index: int, **changes) -> ResultRow:
        given = {
            "item_key": f"{index:032x}",
            "item_id": f"item-{index}",
            "row_index": index,
            "run_id": "run",
            "status": "done",
            "attempts": 1,
            "finished_at": datetime(2026, 11, 22, 4, index, tzinfo=UTC),
            "prompt": 'a "red" cup, on a table',
        }
        return ResultRow(**(given | changes))

    failures = [(2, ErrorCode.IMAGE_MISSING), (3, ErrorCode.ROW_INVALID)]
    rows = [row(index, image_uri=f"images/{index:02x}.png") for index in range(2)]
    rows += [row(i, status="failed", error_code=code, error_message=f"reason {i}") for i, code in failures]
    RunOutput(str(tmp_path / "out")).write_results("run", 0, rows)
    return tmp_path / "out"


def test_results_as_table_names_reason_and_remedy(finished_output, ezigen):
    command = ezigen("results", finished_output, "--failed")
    assert command.returncode == 0
    assert "image_missing: reason 2" in command.stdout
    assert "Upload the picture or correct its address" in command.stdout
    assert "item-0" not in command.stdout


def test_results_as_csv_and_json_lines_hold_every_row(finished_output, ezigen):
    table = list(csv.DictReader(io.StringIO(ezigen("results", finished_output, "--format", "csv").stdout)))
    lines = ezigen("results", finished_output, "--format", "jsonl", "--status", "done").stdout.splitlines()
    assert [row["item_id"] for row in table] == ["item-0", "item-1", "item-2", "item-3"]
    assert table[0]["prompt"] == 'a "red" cup, on a table'
    assert [json.loads(line)["item_id"] for line in lines] == ["item-0", "item-1"]
    assert json.loads(lines[0])["error_code"] is None


def test_results_by_code(finished_output, ezigen):
    command = ezigen("results", finished_output, "--code", "row_invalid", "--format", "csv")
    assert [line.split(",")[0] for line in command.stdout.splitlines()] == ["item_id", "item-3"]
    wrong = ezigen("results", finished_output, "--code", "nonsense")
    assert wrong.returncode == 2
    assert "image_missing" in wrong.stderr


def test_results_of_nothing(tmp_path, ezigen):
    command = ezigen("results", tmp_path)
    assert command.returncode == 2
    assert "no run has written here" in command.stderr


def test_help_loads_nothing_heavy(command_line: CommandLine):
    """Seconds are for benchmarks: what help would wait for are these imports."""
    command = command_line.run("--help")
    assert command.process.returncode == 0
    assert "personalize" in command.stdout
    script = "import sys, flows.command_line; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in loaded
    assert not {"torch", "ray", "prefect", "diffusers", "transformers", "scipy", "pandas"} & set(loaded)
