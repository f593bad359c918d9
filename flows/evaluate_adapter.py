"""A published adapter, measured on products that nothing was trained on: the last link of a pipeline."""

from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from ezigen.config import EvaluationConfig, EvaluationInputs, RayConfig, StackConfig
from flows.evaluation_job import EvaluationJob
from flows.parameters import EvaluationParameters
from flows.publishing import publish_evaluation
from flows.run_logs import forward_logs
from flows.stages import PLAN_TIMEOUT_S, WORK_DELAYS_S, do_work, make_plan, run_stages, stage
from flows.storage_block import load_storage_options

SHOW_TIMEOUT_S = 600.0

plan_evaluation = stage("plan", timeout_s=PLAN_TIMEOUT_S)(make_plan)
measure = stage("measure", delays_s=WORK_DELAYS_S)(do_work)


@stage("show", timeout_s=SHOW_TIMEOUT_S)
def show(job: EvaluationJob) -> State[None]:
    """Shows figures and images on the run's page."""
    summary = job.summarize()
    publish_evaluation(summary, job.read_sheet())
    return Completed(message=summary.describe())


def name_run() -> str:
    """NAME@VERSION."""
    inputs = runtime.flow_run.parameters["inputs"]
    return str(inputs["adapter"] if isinstance(inputs, dict) else inputs.adapter)


@flow(name="evaluate_adapter", flow_run_name=name_run)
def evaluate_adapter(
    inputs: EvaluationInputs,
    model: StackConfig = StackConfig(),  # noqa: B008 - frozen
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008 - frozen
    cluster: RayConfig = RayConfig(),  # noqa: B008 - frozen
) -> State[Any]:
    """How well an adapter of the embedded model shows products that it never saw, and follows the prompt.

    What was measured of the same version with the same settings is not measured again. It takes place in this process:
    the embedded model is small. For every other model the last measurement of training is shown, as nobody knows which
    subjects its networks have not seen.

    Args:
        inputs: The adapter, and the folder of evaluations.
        model: The Stable Diffusion stack of the adapter.
        evaluation: How many images are made, and how.
        cluster: Only the life of the hold on the folder is taken from it.

    """
    with forward_logs(runtime.flow_run.id):
        job = EvaluationJob(
            EvaluationParameters(inputs, model, evaluation, cluster), load_storage_options(inputs.storage_block)
        )
        return run_stages(job, plan_evaluation, measure, show)
