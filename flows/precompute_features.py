"""What training needs of the frozen networks, computed once per distinct subject, target and text."""

from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from ezigen.config import FeatureConfig, FeatureInputs, RayConfig, StackConfig
from flows.features_job import FeaturesJob, table_rows
from flows.parameters import FeatureParameters
from flows.publishing import publish_features
from flows.run_logs import forward_logs
from flows.stages import PLAN_TIMEOUT_S, WORK_DELAYS_S, do_work, make_plan, name_run, run_stages, stage
from flows.storage_block import load_storage_options

INDEX_TIMEOUT_S = 4 * 3600.0

plan_shards = stage("plan", timeout_s=PLAN_TIMEOUT_S)(make_plan)
# Without a time-out: a run takes as long as its set of pairs is.
compute_shards = stage("compute features", delays_s=WORK_DELAYS_S)(do_work)


@stage("index", timeout_s=INDEX_TIMEOUT_S)
def index_store(job: FeaturesJob) -> State[None]:
    """Makes sure of the index and the manifest, and shows tables and features on the run's page."""
    manifest_uri = job.write_index()
    publish_features(job.output, table_rows(job.outcome), manifest_uri, job.name)
    return Completed(message=manifest_uri)


@flow(name="precompute_features", flow_run_name=name_run)
def precompute_features(
    inputs: FeatureInputs,
    model: StackConfig = StackConfig(),  # noqa: B008 - frozen
    features: FeatureConfig = FeatureConfig(),  # noqa: B008 - frozen
    cluster: RayConfig = RayConfig(),  # noqa: B008 - frozen
) -> State[Any]:
    """The frozen UNet's features of every subject, the latents of every target, the embeddings of every text.

    Each is stored once per distinct picture or text, as Parquet that any reader opens. Running again computes exactly
    the missing shards, and with `inputs.verify` those that were damaged since. A store that would become larger than
    `inputs.max_gib` is refused before anything is written; one that turns out larger ends the run as failed, what is
    stored is kept, and a larger budget lets it go on.

    Args:
        inputs: The pairs, the feature store, and how much may be written.
        model: The Stable Diffusion stack and its precision.
        features: What is stored and how. A changed value makes another store.
        cluster: The Ray cluster and the workers on it.

    """
    with forward_logs(runtime.flow_run.id):
        job = FeaturesJob(
            FeatureParameters(inputs, model, features, cluster), load_storage_options(inputs.storage_block)
        )
        return run_stages(job, plan_shards, compute_shards, index_store)
