"""A night in a minute: a schedule starts a small catalog on a stack, and what it leaves is looked at."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx

from flows.stack.settings import BUCKET, Stack, find_program
from flows.stack.standing import TRIAL_CATALOG, TRIAL_ROWS, environment_of

DEPLOYMENT = "personalize_catalog/nightly"
ARTIFACTS = ("catalog-progress", "catalog-counts", "catalog-report")
INTERVAL = timedelta(seconds=30)
START_TIMEOUT_S = 180.0
END_TIMEOUT_S = 900.0
METRICS_TIMEOUT_S = 60.0
_POLL_S = 1.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what was found."""

    name: str
    is_good: bool
    found: str


def try_stack(stack: Stack, say: Callable[[str], None] = lambda _: None) -> Iterator[Check]:
    """The checks, as they are made. A check that is not good ends what depends on it."""
    from prefect.client.orchestration import get_client

    output = f"s3://{BUCKET}/outputs/try-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with environment_of(stack), get_client(sync_client=True) as client:
        say("waiting for the schedule")
        run_id = _start_by_schedule(client, output, stack.num_nodes)
        yield Check("a schedule starts a run", run_id is not None, f"flow run {run_id}" if run_id else "none began")
        if run_id is None:
            return
        say("the run has begun")
        run = _wait_until_ended(client, run_id)
        yield Check("the worker runs it to its end", run.state.is_completed(), f"{run.state.name}: {run.state.message}")
        yield _check_artifacts(client, run_id)
    yield _check_output(stack, output)
    if find_program("prometheus"):
        say("waiting for metrics")
        yield _check_metrics(stack)


def _start_by_schedule(client: Any, output: str, num_workers: int) -> UUID | None:
    """A schedule that comes due soon, until it has begun a run: Prefect's scheduler and worker do the rest."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterTags
    from prefect.client.schemas.schedules import IntervalSchedule

    deployment = client.read_deployment_by_name(DEPLOYMENT)
    parameters = json.loads(json.dumps(deployment.parameters))
    parameters["inputs"] |= {"catalog_uri": f"s3://{BUCKET}/{TRIAL_CATALOG}", "output_uri": output}
    parameters["cluster"]["num_workers"] = num_workers
    due = IntervalSchedule(interval=INTERVAL, anchor_date=datetime.now(UTC))
    schedule = DeploymentScheduleCreate(schedule=due, active=True, parameters=parameters)
    (made,) = client.create_deployment_schedules(deployment.id, [schedule])
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        wanted = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            tags=FlowRunFilterTags(all_=["auto-scheduled"]),
        )
        while time.monotonic() < deadline:
            runs = client.read_flow_runs(flow_run_filter=wanted)
            for run in runs:
                is_ours = run.parameters.get("inputs", {}).get("output_uri") == output
                if is_ours and run.state is not None and (run.state.is_running() or run.state.is_final()):
                    return UUID(str(run.id))
            time.sleep(_POLL_S)
        return None
    finally:
        client.delete_deployment_schedule(deployment.id, made.id)


def _wait_until_ended(client: Any, run_id: UUID) -> Any:
    deadline = time.monotonic() + END_TIMEOUT_S
    run = client.read_flow_run(run_id)
    while not run.state.is_final() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        run = client.read_flow_run(run_id)
    return run


def _check_artifacts(client: Any, run_id: UUID) -> Check:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    keys = {str(artifact.key) for artifact in client.read_artifacts(artifact_filter=wanted)}
    return Check("its page has progress, counts and a report", set(ARTIFACTS) <= keys, ", ".join(sorted(keys)))


def _check_output(stack: Stack, output: str) -> Check:
    from tasks.storage import Locations, RunOutput

    stored = RunOutput(output, Locations(storage_options=stack.storage_options))
    record = stored.read_run()
    rows = sum(1 for _ in stored.read_result_rows())
    is_good = record is not None and record.state == "finished" and rows == TRIAL_ROWS
    return Check("the bucket has a row for every item", is_good, f"{rows} rows in {output}")


def _check_metrics(stack: Stack) -> Check:
    """What Ray's workers counted reaches Prometheus some seconds later."""
    deadline = time.monotonic() + METRICS_TIMEOUT_S
    found = 0.0
    while not found and time.monotonic() < deadline:
        found = _query(stack, 'sum({__name__=~"ray_ezigen_items(_total)?"})')
        time.sleep(0 if found else _POLL_S)
    return Check("Prometheus has counted its items", found > 0, f"{found:.0f} items")


def _query(stack: Stack, expression: str) -> float:
    """The value of a PromQL expression; 0 where there is none."""
    try:
        answer = httpx.get(f"{stack.url('prometheus')}/api/v1/query", params={"query": expression}, timeout=10)
        result = answer.json()["data"]["result"]
    except (httpx.HTTPError, ValueError, KeyError):
        return 0.0
    return float(result[0]["value"][1]) if result else 0.0
