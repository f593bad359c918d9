"""The main job: a catalog's missing images, their results and a report. A run can end at any moment and be repeated."""

import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Cancelled, Completed, Crashed, Failed

from ezigen.config import CatalogInputs, ClusterConfig, ConfigurationError, ModelConfig, SamplerConfig, embedded
from flows.catalog_job import CatalogJob, CatalogSummary, UnfinishedRun
from flows.parameters import CatalogParameters
from flows.publishing import ProgressPublisher, publish_results
from flows.run_logs import forward_logs
from flows.storage_block import load_storage_options
from flows.watching import RunWatcher, current_watcher
from tasks.storage.lease import Lease, LeaseLost

if TYPE_CHECKING:
    from prefect.tasks import Task

    from tasks.catalog.progress import Progress

logger = logging.getLogger(__name__)

PLAN_TIMEOUT_S = 4 * 3600.0
REPORT_TIMEOUT_S = 3600.0


def name_run() -> str:
    """The last part of the output's location: what people call the run."""
    inputs = runtime.flow_run.parameters["inputs"]
    uri = inputs.output_uri if isinstance(inputs, CatalogInputs) else inputs["output_uri"]
    return str(uri).rstrip("/").rpartition("/")[2] or str(uri)


def may_pass(_task: "Task[..., Any]", _task_run: TaskRun, state: State[Any]) -> bool:
    """Whether trying a stage again can help: not when a person has to act, nor when another run has the output."""
    return not isinstance(state.result(raise_on_failure=False), ConfigurationError | LeaseLost)


@task(
    name="plan",
    task_run_name="plan",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=may_pass,
    timeout_seconds=PLAN_TIMEOUT_S,
    cache_policy=NO_CACHE,
)
def plan_items(job: CatalogJob) -> State[None]:
    """Which rows are done, to do, refused. Reads the catalog and the results, writes nothing."""
    message = job.make_plan()
    logger.info(message)
    if (watcher := current_watcher.get()) is not None:
        watcher.planned(job.plan)
    return Completed(message=message)


# Without a time-out: a run takes as long as its catalog is, and every item has a time-out of its own.
@task(
    name="generate images",
    task_run_name="generate images",
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
)
def generate_images(job: CatalogJob, lease: Lease) -> State[None]:
    """Makes the missing images on Ray. Trying again is safe: what has a result row is not made again."""
    if runtime.task_run.run_count > 1:
        job.make_plan()
    with ProgressPublisher() as publisher:
        job.generate(lease, show_to(publisher.show, current_watcher.get()))
    return Completed(message=job.summarize().describe())


@task(
    name="report",
    task_run_name="report",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=may_pass,
    timeout_seconds=REPORT_TIMEOUT_S,
    cache_policy=NO_CACHE,
)
def write_report_page(job: CatalogJob) -> State[None]:
    """Writes report.html beside the results, and shows counts and a contact sheet on the run's page."""
    report_uri = job.write_report()
    publish_results(job.output, report_uri, job.name)
    return Completed(message=report_uri)


@flow(name="personalize_catalog", flow_run_name=name_run)
def personalize_catalog(
    inputs: CatalogInputs,
    model: ModelConfig = ModelConfig(),  # noqa: B008 - frozen
    sampler: SamplerConfig = embedded(),  # noqa: B008 - frozen
    cluster: ClusterConfig = ClusterConfig(),  # noqa: B008 - frozen
) -> State[Any]:
    """Every product of a catalog in the scenes its rows ask for: the images that are missing, results, a report.

    Running again does exactly the missing work. A bad row becomes a failed row and stops nothing; more failed rows than
    `inputs.max_failed_share` allows end the run as failed, after everything else is done.

    Args:
        inputs: The catalog, the output folder, and what may be opened on the way.
        model: The Stable Diffusion stack, its adapter and its precision.
        sampler: How one image is made. A changed value makes every item of the catalog a new item.
        cluster: The Ray cluster, the workers and their limits.

    """
    with forward_logs(runtime.flow_run.id):
        job = CatalogJob(CatalogParameters(inputs, model, sampler, cluster), load_storage_options(inputs.storage_block))
        with job.hold_output() as lease:
            plan_items(job)
            generate_images(job, lease)
            if not job.summarize().outcome.stopped:
                write_report_page(job)
        return to_state(job.summarize())


def show_to(publish: Callable[["Progress"], None], watcher: RunWatcher | None) -> Callable[["Progress"], None]:
    """One listener for the run's page and for whoever started the run in this process."""

    def show(progress: "Progress") -> None:
        publish(progress)
        if watcher is not None:
            watcher.progressed(progress)

    return show


def to_state(summary: CatalogSummary) -> State[Any]:
    """How the flow run ends, in Prefect's words. The data is the summary, or an UnfinishedRun that holds it."""
    if summary.stopped_by is not None:
        message = f"stopped by {signal.Signals(summary.stopped_by).name}: {summary.describe()}"
        # A run that somebody cancelled stays cancelled; one whose machine was taken away may be started again.
        kind = Cancelled if was_cancelled(summary.stopped_by) else Crashed
        return kind(message=message, data=UnfinishedRun(message, summary))
    if summary.failure:
        return Failed(message=summary.failure, data=UnfinishedRun(summary.failure, summary))
    return Completed(message=summary.describe(), data=summary)


def was_cancelled(signal_number: int) -> bool:
    """Whether a person ended the run: Ctrl-C, or a cancellation on its page, after which SIGTERM follows."""
    if signal_number == signal.SIGINT:
        return True
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(runtime.flow_run.id).state
    except httpx.HTTPError as error:
        logger.warning("Prefect does not say whether the run was cancelled: %s", error)
        return False
    return state is not None and state.is_cancelling()
