"""Training pairs of COCO 2014 and YouTube-VIS, and a card that shows what they are. Can end at any moment."""

from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from ezigen.config import PairConfig, PairInputs, RayConfig
from flows.pairs_job import PairsJob
from flows.parameters import PairParameters
from flows.publishing import publish_pairs
from flows.run_logs import forward_logs
from flows.stages import PLAN_TIMEOUT_S, WORK_DELAYS_S, do_work, make_plan, name_run, run_stages, stage
from flows.storage_block import load_storage_options

CARD_TIMEOUT_S = 3600.0

plan_candidates = stage("plan", timeout_s=PLAN_TIMEOUT_S)(make_plan)
# Without a time-out: a run takes as long as its data sets are.
build_shards = stage("build pairs", delays_s=WORK_DELAYS_S)(do_work)


@stage("card", timeout_s=CARD_TIMEOUT_S)
def write_card_page(job: PairsJob) -> State[None]:
    """Writes card.json and card.html beside the pairs, and shows counts and a contact sheet on the run's page."""
    card_uri = job.write_card()
    publish_pairs(job.output, job.outcome, card_uri, job.name)
    return Completed(message=card_uri)


@flow(name="build_pairs", flow_run_name=name_run)
def build_pairs(
    inputs: PairInputs,
    pairs: PairConfig = PairConfig(),  # noqa: B008 - frozen
    cluster: RayConfig = RayConfig(),  # noqa: B008 - frozen
) -> State[Any]:
    """Subject and target pictures for training, cut from COCO 2014 and YouTube-VIS, as Parquet.

    The same settings give the same pairs on any number of workers. Running again does exactly the missing shards. A
    candidate that cannot be used is refused with a reason and another one takes its place; more pairs that
    refusals leave missing than `inputs.max_refused_share` allows end the run as failed, after everything else is done.

    Args:
        inputs: The data sets, the output folder, and how many pairs are wanted of each source.
        pairs: Which objects and frames become pairs, and how they are cut. A changed value makes another set.
        cluster: The Ray cluster and the workers on it.

    """
    with forward_logs(runtime.flow_run.id):
        job = PairsJob(PairParameters(inputs, pairs, cluster), load_storage_options(inputs.storage_block))
        return run_stages(job, plan_candidates, build_shards, write_card_page)
