"""What the stages of all flows share: retries, what a stage tells, their order, and how a flow run is called."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from ezigen.config import ConfigurationError
from flows.endings import to_state
from flows.job import Job, last_part
from flows.progress import RunProgress
from flows.publishing import ProgressPublisher
from flows.watching import RunWatcher, current_watcher
from tasks.storage.lease import LeaseLost

if TYPE_CHECKING:
    from prefect.tasks import Task

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

PLAN_TIMEOUT_S = 4 * 3600.0
PLAN_DELAYS_S = (5.0, 30.0)
WORK_DELAYS_S = (10.0, 60.0)


def name_run() -> str:
    """The last part of the output's location: what people call the run."""
    inputs = runtime.flow_run.parameters["inputs"]
    return last_part(str(inputs["output_uri"] if isinstance(inputs, dict) else inputs.output_uri))


def may_pass(_task: "Task[..., Any]", _task_run: TaskRun, state: State[Any]) -> bool:
    """Whether trying a stage again can help: not when a person has to act, nor when another run has the output."""
    return not isinstance(state.result(raise_on_failure=False), ConfigurationError | LeaseLost)


def stage(
    name: str, *, delays_s: tuple[float, ...] = PLAN_DELAYS_S, timeout_s: float | None = None
) -> Callable[[Callable[P, R]], "Task[P, R]"]:
    """A Prefect task of that name. It is tried again after each of the delays if what went wrong may pass."""
    return task(
        name=name,
        task_run_name=name,
        retries=len(delays_s),
        retry_delay_seconds=list(delays_s),
        retry_condition_fn=may_pass,
        timeout_seconds=timeout_s,
        cache_policy=NO_CACHE,
    )


def make_plan(job: Job) -> State[None]:
    """The body of a first stage: decides what is to do and tells it. Writes nothing that a reader would see."""
    message = job.make_plan()
    logger.info(message)
    if (watcher := current_watcher.get()) is not None:
        watcher.planned(message)
    return Completed(message=message)


def do_work(job: Job) -> State[None]:
    """The body of a second stage: does what is missing. Trying again is safe: what is stored is not made again."""
    if runtime.task_run.run_count > 1:
        job.make_plan()
    with ProgressPublisher(f"{job.artifact_prefix}-progress") as publisher:
        job.work(show_to(publisher.show, current_watcher.get()))
    return Completed(message=job.summarize().describe())


def run_stages(
    job: Job,
    plan: Callable[[Any], Any],
    work: Callable[[Any], Any],
    finish: Callable[[Any], Any],
) -> State[Any]:
    """The three stages in their order, on an output that nobody else writes to; a stopped run has no last one."""
    with job.hold_output():
        plan(job)
        work(job)
        if not job.summarize().stopped:
            finish(job)
    return to_state(job.summarize())


def show_to(publish: Callable[[RunProgress], None], watcher: RunWatcher | None) -> Callable[[RunProgress], None]:
    """One listener for the run's page and for whoever started the run in this process."""

    def show(progress: RunProgress) -> None:
        publish(progress)
        if watcher is not None:
            watcher.progressed(progress)

    return show
