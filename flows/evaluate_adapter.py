"""An adapter, measured on a benchmark: the last link of a pipeline, and the paper's tables."""

from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from ezigen.config import ClusterConfig, EvaluationConfig, EvaluationInputs, StackConfig
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
    """The adapter."""
    inputs = runtime.flow_run.parameters["inputs"]
    return str(inputs["adapter"] if isinstance(inputs, dict) else inputs.adapter)


@flow(name="evaluate_adapter", flow_run_name=name_run)
def evaluate_adapter(
    inputs: EvaluationInputs,
    model: StackConfig = StackConfig(),  # noqa: B008 - frozen
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008 - frozen
    cluster: ClusterConfig = ClusterConfig(),  # noqa: B008 - frozen
) -> State[Any]:
    """How well an adapter shows a benchmark's subjects and follows its prompts, beside what the paper published.

    The images are made by catalog runs, measured on the same cluster, and compared with intervals over subjects. What
    was made and measured before is not made again. The default benchmark is made of the embedded model's world, of
    products that it never saw; where it says nothing of a model, the last measurement of training is shown.

    Args:
        inputs: The adapter, and the folder of evaluations.
        model: The Stable Diffusion stack of the adapter.
        evaluation: The benchmark, and which tables are made of it.
        cluster: The Ray cluster, the workers and their limits.

    """
    with forward_logs(runtime.flow_run.id):
        job = EvaluationJob(
            EvaluationParameters(inputs, model, evaluation, cluster), load_storage_options(inputs.storage_block)
        )
        return run_stages(job, plan_evaluation, measure, show)
