"""From raw data sets to a published and measured adapter. Can end at any moment.

build_pairs, precompute_features, train_adapter, evaluate_adapter; and if asked for, the promotion of the version.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from ezigen.config import (
    ClusterConfig,
    EvaluationConfig,
    FeatureConfig,
    MonitoringConfig,
    PairConfig,
    PipelineInputs,
    RayConfig,
    StackConfig,
    TrainingClusterConfig,
    TrainingConfig,
    embedded_monitoring,
    recommended_training,
)
from flows.build_pairs import build_pairs
from flows.endings import to_state
from flows.evaluate_adapter import evaluate_adapter
from flows.job import Summary, UnfinishedRun, last_part
from flows.parameters import PipelineParameters
from flows.pipeline_job import PipelineSummary, check_early
from flows.precompute_features import precompute_features
from flows.promotion import current_version, promote_if_no_worse
from flows.run_logs import forward_logs
from flows.storage_block import load_storage_options
from flows.train_adapter import train_adapter
from flows.training_job import TrainingSummary
from tasks.adapters import Registry
from tasks.storage import Locations, OutputFolder

logger = logging.getLogger(__name__)

Summaries = Mapping[str, Summary]
"""What the links before have come to, by title."""

Stage = Callable[[PipelineParameters, Summaries], State[Any]]


def make_pairs(wanted: PipelineParameters, _done: Summaries) -> State[Any]:
    """Training pairs, in pairs/."""
    return build_pairs(wanted.inputs.pair_inputs(), wanted.pairs, _shared(wanted.cluster), return_state=True)


def make_features(wanted: PipelineParameters, _done: Summaries) -> State[Any]:
    """What training needs of the frozen networks, in features/."""
    inputs = wanted.inputs.feature_inputs()
    return precompute_features(inputs, wanted.model, wanted.features, _shared(wanted.cluster), return_state=True)


def make_adapter(wanted: PipelineParameters, _done: Summaries) -> State[Any]:
    """The adapter: its run in runs/, its version in adapters/.

    `model.dtype` is what features are computed in; what training computes in is `training.precision`.
    """
    return train_adapter(
        wanted.inputs.training_inputs(),
        wanted.model.model_copy(update={"dtype": "auto"}),
        wanted.training,
        wanted.monitoring,
        wanted.cluster,
        return_state=True,
    )


def make_evaluation(wanted: PipelineParameters, done: Summaries) -> State[Any]:
    """What the version that training published measures, in evaluation/."""
    return _evaluate(wanted, _published(done))


def make_promotion(wanted: PipelineParameters, done: Summaries) -> State[Any]:
    """Points the alias to the new version, if it is no worse than the one that has it; measures that one if need be."""
    inputs, reference = wanted.inputs, _published(done)
    locations = Locations(storage_options=load_storage_options(inputs.storage_block))
    registry = Registry(inputs.place("adapters"), locations)
    before = current_version(registry, inputs.name, inputs.promote)
    if before not in ("", reference):
        state = _evaluate(wanted, before)
        if not state.is_completed():
            return state
    output = OutputFolder(inputs.place("evaluation"), locations)
    return to_state(promote_if_no_worse(registry, reference, inputs.promote, output, wanted.evaluation.margins))


def _published(done: Summaries) -> str:
    trained = done["adapter"]
    assert isinstance(trained, TrainingSummary)
    return trained.published


def _evaluate(wanted: PipelineParameters, adapter: str) -> State[Any]:
    inputs = wanted.inputs.evaluation_inputs(adapter)
    cluster = ClusterConfig(**dict(_shared(wanted.cluster)))
    return evaluate_adapter(inputs, wanted.model, wanted.evaluation, cluster, return_state=True)


STAGES: tuple[tuple[str, Stage], ...] = (
    ("pairs", make_pairs),
    ("features", make_features),
    ("adapter", make_adapter),
    ("evaluation", make_evaluation),
)


def name_run() -> str:
    """The last part of the root's location."""
    inputs = runtime.flow_run.parameters["inputs"]
    return last_part(str(inputs["root_uri"] if isinstance(inputs, dict) else inputs.root_uri))


@flow(name="run_pipeline", flow_run_name=name_run)
def run_pipeline(
    inputs: PipelineInputs,
    model: StackConfig = StackConfig(),  # noqa: B008 - frozen
    pairs: PairConfig = PairConfig(size_px=64),  # noqa: B008 - frozen; the size of the embedded model
    features: FeatureConfig = FeatureConfig(),  # noqa: B008 - frozen
    training: TrainingConfig = recommended_training(),  # noqa: B008 - frozen
    monitoring: MonitoringConfig = embedded_monitoring(),  # noqa: B008 - frozen
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008 - frozen
    cluster: TrainingClusterConfig = TrainingClusterConfig(),  # noqa: B008 - frozen
) -> State[Any]:
    """The whole chain, each link a flow run of its own with its own page: pairs, features, adapter, evaluation.

    A link whose output for these inputs exists costs seconds and says "nothing to do"; one that was interrupted goes
    on. The first link that does not come to its end ends the chain.

    Args:
        inputs: The data sets, and the root folder of everything that is made of them.
        model: The Stable Diffusion stack; `dtype` is what features are computed in.
        pairs: Which objects and frames become pairs; `size_px` has to be the model's picture size.
        features: What is stored of every subject, target and text.
        training: How the adapters are trained.
        monitoring: Checkpoints, and what is measured along the way.
        evaluation: The benchmark that the adapter is measured on in the end; the default one is the embedded model's.
        cluster: The Ray cluster and the workers on it, for all links.

    """
    with forward_logs(runtime.flow_run.id):
        wanted = PipelineParameters(inputs, model, pairs, features, training, monitoring, evaluation, cluster)
        check_early(wanted)
        links = (*STAGES, ("promotion", make_promotion)) if inputs.promote else STAGES
        return run_links(wanted, links)


def run_links(wanted: PipelineParameters, links: tuple[tuple[str, Stage], ...]) -> State[Any]:
    """Runs one link after the other; the final state of the chain is that of the link that ended it."""
    done: list[tuple[str, Summary]] = []
    for title, run in links:
        state = run(wanted, dict(done))
        result = state.result(raise_on_failure=False)
        if isinstance(result, UnfinishedRun):
            return _end([*done, (title, result.summary)])
        if isinstance(result, BaseException):
            return Failed(message=f"{title}: {state.message}", data=result)
        logger.info("%s: %s", title, result.describe())
        done.append((title, result))
    return Completed(message=done[-1][1].describe(), data=PipelineSummary(stages=tuple(done)))


def _end(stages: list[tuple[str, Summary]]) -> State[Any]:
    title, last = stages[-1]
    failure = f"{title}: {last.failure}" if last.failure else ""
    return to_state(PipelineSummary(stages=tuple(stages), failure=failure, stopped_by=last.stopped_by))


def _shared(cluster: TrainingClusterConfig) -> RayConfig:
    """The part of the cluster's settings that every flow has."""
    return RayConfig(**{name: getattr(cluster, name) for name in RayConfig.model_fields})
