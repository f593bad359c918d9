"""The main job: a catalog's missing images, their results and a report. A run can end at any moment and be repeated."""

from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from ezigen.config import CatalogInputs, ClusterConfig, ModelConfig, SamplerConfig, balanced, embedded
from flows.catalog_job import CatalogJob
from flows.parameters import CatalogParameters
from flows.publishing import publish_results
from flows.run_logs import forward_logs
from flows.stages import PLAN_TIMEOUT_S, WORK_DELAYS_S, do_work, make_plan, name_run, run_stages, stage
from flows.storage_block import load_storage_options

REPORT_TIMEOUT_S = 3600.0

plan_items = stage("plan", timeout_s=PLAN_TIMEOUT_S)(make_plan)
# Without a time-out: a run takes as long as its catalog is, and every item has a time-out of its own.
generate_images = stage("generate images", delays_s=WORK_DELAYS_S)(do_work)


@stage("report", timeout_s=REPORT_TIMEOUT_S)
def write_report_page(job: CatalogJob) -> State[None]:
    """Writes report.html beside the results, and shows counts and a contact sheet on the run's page."""
    report_uri = job.write_report()
    publish_results(job.output, report_uri, job.name)
    return Completed(message=report_uri)


@flow(name="personalize_catalog", flow_run_name=name_run)
def personalize_catalog(
    inputs: CatalogInputs,
    model: ModelConfig = ModelConfig(),  # noqa: B008 - frozen
    sampler: SamplerConfig = balanced(embedded()),  # noqa: B008 - frozen
    cluster: ClusterConfig = ClusterConfig(),  # noqa: B008 - frozen
) -> State[Any]:
    """Every product of a catalog in the scenes its rows ask for: the images that are missing, results, a report.

    Running again does exactly the missing work. A bad row becomes a failed row and stops nothing; more failed rows than
    `inputs.max_failed_share` allows end the run as failed, after everything else is done.

    Args:
        inputs: The catalog, the output folder, and what may be opened on the way.
        model: The Stable Diffusion stack, its adapter and its precision.
        sampler: How one image is made: balanced, for the embedded model. A changed value makes every item a new item.
        cluster: The Ray cluster, the workers and their limits.

    """
    with forward_logs(runtime.flow_run.id):
        job = CatalogJob(CatalogParameters(inputs, model, sampler, cluster), load_storage_options(inputs.storage_block))
        return run_stages(job, plan_items, generate_images, write_report_page)
