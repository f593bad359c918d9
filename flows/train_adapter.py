"""Adapters from a feature store: trained, measured on held-out pairs and published. Can end at any moment."""

from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from ezigen.config import (
    MonitoringConfig,
    StackConfig,
    TrainingClusterConfig,
    TrainingConfig,
    TrainingInputs,
    embedded_monitoring,
    recommended_training,
)
from flows.parameters import TrainingParameters
from flows.run_logs import forward_logs
from flows.stages import PLAN_TIMEOUT_S, WORK_DELAYS_S, do_work, make_plan, run_stages, stage
from flows.storage_block import load_storage_options
from flows.training_job import TrainingJob
from flows.training_page import MeasurementPublisher, publish_training

PUBLISH_TIMEOUT_S = 3600.0

plan_run = stage("plan", timeout_s=PLAN_TIMEOUT_S)(make_plan)


# Without a time-out: a run takes as long as it has steps.
@stage("train", delays_s=WORK_DELAYS_S)
def train(job: TrainingJob) -> State[None]:
    """Makes the missing steps; the run's page follows the measurements."""
    with MeasurementPublisher(job.output, job.plan.num_steps) as publisher:
        job.on_measured = publisher.notice
        return do_work(job)


@stage("publish", timeout_s=PUBLISH_TIMEOUT_S)
def publish(job: TrainingJob) -> State[None]:
    """Publishes the next version, writes report.html, and shows measurements, charts and samples on the run's page."""
    report_uri = job.finish()
    summary = job.summarize()
    publish_training(
        job.output,
        job.plan.num_steps,
        adapter_uri=summary.published_uri,
        report_uri=report_uri,
        state=summary.failure or f"{summary.describe()}.",
    )
    return Completed(message=f"{summary.published or 'not published'}, {report_uri}")


def name_run() -> str:
    """The adapter's name: what people call the run."""
    inputs = runtime.flow_run.parameters["inputs"]
    return str(inputs["name"] if isinstance(inputs, dict) else inputs.name)


@flow(name="train_adapter", flow_run_name=name_run)
def train_adapter(
    inputs: TrainingInputs,
    model: StackConfig = StackConfig(),  # noqa: B008 - frozen
    training: TrainingConfig = recommended_training(),  # noqa: B008 - frozen
    monitoring: MonitoringConfig = embedded_monitoring(),  # noqa: B008 - frozen
    cluster: TrainingClusterConfig = TrainingClusterConfig(),  # noqa: B008 - frozen
) -> State[Any]:
    """Subject adapters, trained on stored features with Ray Train and published as the next version of their name.

    Every configuration has a run folder of its own: the same parameters continue where the run ended, other ones begin
    another run. A run that goes on after a loss makes the numbers of one that was never disturbed. A loss that is not
    finite, or above `training.max_loss`, ends the run as failed; its last checkpoint stays.

    Args:
        inputs: The feature store, the folder of runs, and where and under which name the adapter is published.
        model: The Stable Diffusion stack that the features were computed with.
        training: How the adapters are trained. A changed value is another run.
        monitoring: Checkpoints, and what is measured along the way.
        cluster: The Ray cluster, the workers on it, and how losses are met.

    """
    with forward_logs(runtime.flow_run.id):
        parameters = TrainingParameters(inputs, model, training, monitoring, cluster)
        job = TrainingJob(parameters, load_storage_options(inputs.storage_block))
        return run_stages(job, plan_run, train, publish)
