"""The parameters of a run from what a person types: preset, flags, and `--set group.field=value`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ezigen.config import (
    PRESETS,
    SPEEDS,
    TRAINING_PRESETS,
    CatalogInputs,
    ClusterConfig,
    ConfigurationError,
    EvaluationConfig,
    EvaluationInputs,
    FeatureConfig,
    FeatureInputs,
    ModelConfig,
    MonitoringConfig,
    PairConfig,
    PairInputs,
    PipelineInputs,
    RayConfig,
    SamplerConfig,
    StackConfig,
    TrainingClusterConfig,
    TrainingConfig,
    TrainingInputs,
    embedded_monitoring,
)

Values = dict[str, Any]
Groups = Mapping[str, type[BaseModel]]


@dataclass(frozen=True)
class CatalogParameters:
    """The four groups that the flow `personalize_catalog` takes."""

    inputs: CatalogInputs
    model: ModelConfig
    sampler: SamplerConfig
    cluster: ClusterConfig


@dataclass(frozen=True)
class PairParameters:
    """The three groups that the flow `build_pairs` takes."""

    inputs: PairInputs
    pairs: PairConfig
    cluster: RayConfig


@dataclass(frozen=True)
class FeatureParameters:
    """The four groups that the flow `precompute_features` takes."""

    inputs: FeatureInputs
    model: StackConfig
    features: FeatureConfig
    cluster: RayConfig


@dataclass(frozen=True)
class TrainingParameters:
    """The five groups that the flow `train_adapter` takes."""

    inputs: TrainingInputs
    model: StackConfig
    training: TrainingConfig
    monitoring: MonitoringConfig
    cluster: TrainingClusterConfig


@dataclass(frozen=True)
class EvaluationParameters:
    """The four groups that the flow `evaluate_adapter` takes."""

    inputs: EvaluationInputs
    model: StackConfig
    evaluation: EvaluationConfig
    cluster: ClusterConfig


@dataclass(frozen=True)
class PipelineParameters:
    """The eight groups that the flow `run_pipeline` takes."""

    inputs: PipelineInputs
    model: StackConfig
    pairs: PairConfig
    features: FeatureConfig
    training: TrainingConfig
    monitoring: MonitoringConfig
    evaluation: EvaluationConfig
    cluster: TrainingClusterConfig


CATALOG_GROUPS: Groups = {
    "inputs": CatalogInputs,
    "model": ModelConfig,
    "sampler": SamplerConfig,
    "cluster": ClusterConfig,
}
PAIR_GROUPS: Groups = {"inputs": PairInputs, "pairs": PairConfig, "cluster": RayConfig}
FEATURE_GROUPS: Groups = {
    "inputs": FeatureInputs,
    "model": StackConfig,
    "features": FeatureConfig,
    "cluster": RayConfig,
}
TRAINING_GROUPS: Groups = {
    "inputs": TrainingInputs,
    "model": StackConfig,
    "training": TrainingConfig,
    "monitoring": MonitoringConfig,
    "cluster": TrainingClusterConfig,
}
EVALUATION_GROUPS: Groups = {
    "inputs": EvaluationInputs,
    "model": StackConfig,
    "evaluation": EvaluationConfig,
    "cluster": ClusterConfig,
}
PIPELINE_GROUPS: Groups = {
    "inputs": PipelineInputs,
    "model": StackConfig,
    "pairs": PairConfig,
    "features": FeatureConfig,
    "training": TrainingConfig,
    "monitoring": MonitoringConfig,
    "evaluation": EvaluationConfig,
    "cluster": TrainingClusterConfig,
}


def build_parameters(
    *,
    inputs: Values,
    model: Values,
    sampler: Values,
    cluster: Values,
    preset: str = "auto",
    speed: str | None = None,
    assignments: Sequence[str] = (),
) -> CatalogParameters:
    """Checked parameters of a catalog run; None means "not given". Assignments come last and win.

    speed: of the preset; without one "balanced", but a preset that is named is taken as it is. Raises
    ConfigurationError for an unknown preset, speed or field and pydantic's ValidationError for a value out of bounds.
    """
    values = {"inputs": _given(inputs), "model": _given(model), "sampler": {}, "cluster": _given(cluster)}
    overrides = [_parse_assignment(text, CATALOG_GROUPS) for text in assignments]
    for path, value in overrides:
        if path[0] == "model":
            _assign(values, path, value)
    values["sampler"] = _preset_values(preset, speed, values["model"]) | _given(sampler)
    for path, value in overrides:
        _assign(values, path, value)
    return CatalogParameters(**cast("Any", _validate(CATALOG_GROUPS, values)))


def build_pair_parameters(
    *, inputs: Values, pairs: Values, cluster: Values, assignments: Sequence[str] = ()
) -> PairParameters:
    """Checked parameters of `build_pairs`; see `build_parameters`."""
    values = {"inputs": inputs, "pairs": pairs, "cluster": cluster}
    return PairParameters(**cast("Any", _read_groups(PAIR_GROUPS, values, assignments)))


def build_feature_parameters(
    *, inputs: Values, model: Values, features: Values, cluster: Values, assignments: Sequence[str] = ()
) -> FeatureParameters:
    """Checked parameters of `precompute_features`; see `build_parameters`."""
    values = {"inputs": inputs, "model": model, "features": features, "cluster": cluster}
    return FeatureParameters(**cast("Any", _read_groups(FEATURE_GROUPS, values, assignments)))


def build_training_parameters(
    *,
    inputs: Values,
    model: Values,
    training: Values,
    monitoring: Values,
    cluster: Values,
    preset: str = "recommended",
    assignments: Sequence[str] = (),
) -> TrainingParameters:
    """Checked parameters of `train_adapter`: the preset, then what is given, then assignments; see `build_parameters`.

    In `training` a name may be a path, as in optimizer.lr.
    """
    values = {"inputs": inputs, "model": model, "cluster": cluster}
    learning = {"training": training, "monitoring": monitoring}
    return TrainingParameters(**cast("Any", _read_learning(TRAINING_GROUPS, values, learning, preset, assignments)))


def build_evaluation_parameters(
    *, inputs: Values, model: Values, evaluation: Values, cluster: Values, assignments: Sequence[str] = ()
) -> EvaluationParameters:
    """Checked parameters of `evaluate_adapter`; see `build_parameters`. In `evaluation` a name may be a path, as in
    benchmark.num_runs; a benchmark.kind that is given is taken whole, not the few cases of the default one.
    """
    values = {"inputs": _given(inputs), "model": _given(model), "cluster": _given(cluster)}
    values["evaluation"] = EvaluationConfig().model_dump()
    wanted = [(["evaluation", *name.split(".")], value) for name, value in _given(evaluation).items()]
    wanted += [_parse_assignment(text, EVALUATION_GROUPS) for text in assignments]
    if any(path == ["evaluation", "benchmark", "kind"] for path, _ in wanted):
        values["evaluation"]["benchmark"] = {}
    for path, value in wanted:
        _assign(values, path, value)
    return EvaluationParameters(**cast("Any", _validate(EVALUATION_GROUPS, values)))


def build_pipeline_parameters(
    *,
    inputs: Values,
    model: Values,
    pairs: Values,
    features: Values,
    training: Values,
    cluster: Values,
    preset: str = "recommended",
    assignments: Sequence[str] = (),
) -> PipelineParameters:
    """Checked parameters of `run_pipeline`; see `build_training_parameters`."""
    values = {"inputs": inputs, "model": model, "pairs": pairs, "features": features, "cluster": cluster}
    learning = {"training": training, "monitoring": {}}
    values["evaluation"] = EvaluationConfig().model_dump()
    return PipelineParameters(**cast("Any", _read_learning(PIPELINE_GROUPS, values, learning, preset, assignments)))


def preset_for(model: str) -> str:
    """The preset that "auto" stands for: the embedded model has its own, everything else gets the paper's."""
    return "embedded" if model == "mini" else "paper"


def describe_invalid(error: ValidationError) -> list[str]:
    """One line per wrong value: the field, what is allowed, and what was given."""
    groups = (
        CATALOG_GROUPS,
        PAIR_GROUPS,
        FEATURE_GROUPS,
        TRAINING_GROUPS,
        EVALUATION_GROUPS,
        PIPELINE_GROUPS,
    )
    names = {model.__name__: name for known in groups for name, model in known.items()}
    group = names.get(error.title, "")
    return [_describe_problem(group, dict(problem)) for problem in error.errors(include_url=False)]


def _describe_problem(group: str, problem: Values) -> str:
    path = ".".join(str(part) for part in ([group] if group else []) + list(problem["loc"]))
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {given!r})"
    return f"{path}: {message}{shown}" if problem["loc"] else f"{group}: {message}"


def _read_groups(groups: Groups, given: Mapping[str, Values], assignments: Sequence[str]) -> dict[str, BaseModel]:
    values = {name: _given(group) for name, group in given.items()}
    for text in assignments:
        _assign(values, *_parse_assignment(text, groups))
    return _validate(groups, values)


def _read_learning(
    groups: Groups,
    given: Mapping[str, Values],
    learning: Mapping[str, Values],
    preset: str,
    assignments: Sequence[str],
) -> dict[str, BaseModel]:
    """The groups of a flow that trains: how it is measured follows from the model, how it learns from the preset."""
    if preset not in TRAINING_PRESETS:
        raise ConfigurationError(f"--preset {preset!r} is unknown; use one of {', '.join(TRAINING_PRESETS)}.")
    values = {name: _given(group) for name, group in given.items()}
    overrides = [_parse_assignment(text, groups) for text in assignments]
    for path, value in overrides:
        if path[0] == "model":
            _assign(values, path, value)
    embedded = values["model"].get("model", "mini") == "mini"
    values["training"] = TRAINING_PRESETS[preset]().model_dump()
    values["monitoring"] = embedded_monitoring().model_dump() if embedded else {}
    for group, fields in learning.items():
        for name, value in _given(fields).items():
            _assign(values, [group, *name.split(".")], value)
    for path, value in overrides:
        _assign(values, path, value)
    return _validate(groups, values)


def _validate(groups: Groups, values: Mapping[str, Values]) -> dict[str, BaseModel]:
    return {name: model.model_validate(values[name]) for name, model in groups.items()}


def _given(values: Values) -> Values:
    return {name: value for name, value in values.items() if value is not None}


def _preset_values(preset: str, speed: str | None, model: Values) -> Values:
    speed = speed or ("balanced" if preset == "auto" else "exact")
    if speed not in SPEEDS:
        raise ConfigurationError(f"--speed {speed!r} is unknown; use one of {', '.join(SPEEDS)}.")
    name = preset_for(model.get("model", "mini")) if preset == "auto" else preset
    if name not in PRESETS:
        raise ConfigurationError(f"--preset {preset!r} is unknown; use one of auto, {', '.join(PRESETS)}.")
    return SPEEDS[speed](PRESETS[name]()).model_dump()


def _parse_assignment(text: str, groups: Groups) -> tuple[list[str], Any]:
    """`sampler.loops.max_loops=4` as its path and value; a value that is no JSON is taken as text."""
    name, sign, raw = text.partition("=")
    path = name.strip().split(".")
    if not sign or len(path) < 2 or path[0] not in groups:
        raise ConfigurationError(
            f"--set {text!r}: write GROUP.FIELD=VALUE with one of the groups {', '.join(groups)}, "
            f"as in {_EXAMPLES[tuple(groups)]}."
        )
    _check_path(text, path, groups)
    try:
        value = json.loads(raw)
    except ValueError:
        value = raw
    return path, value


_EXAMPLES = {
    tuple(CATALOG_GROUPS): "sampler.loops.max_loops=4",
    tuple(PAIR_GROUPS): "pairs.coco.min_area_px=500",
    tuple(FEATURE_GROUPS): "features.batch_size=4",
    tuple(TRAINING_GROUPS): "training.optimizer.warmup_steps=100",
    tuple(EVALUATION_GROUPS): "evaluation.benchmark.num_runs=2",
    tuple(PIPELINE_GROUPS): "training.optimizer.warmup_steps=100",
}


def _check_path(text: str, path: Sequence[str], groups: Groups) -> None:
    model: type[BaseModel] | None = groups[path[0]]
    is_key = False  # the next name is one that people have given, as of a baseline
    for depth, name in enumerate(path[1:], start=1):
        if is_key:
            is_key = False
            continue
        fields = model.model_fields if model is not None else {}
        if name not in fields:
            known = f"known fields: {', '.join(fields)}" if fields else "it has no fields of its own"
            raise ConfigurationError(f"--set {text!r}: {'.'.join(path[:depth])} has no field {name!r}; {known}.")
        model = _nested_model(fields[name])
        is_key = get_origin(fields[name].annotation) is dict


def _nested_model(field: FieldInfo) -> type[BaseModel] | None:
    candidates = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _assign(groups: Values, path: Sequence[str], value: Any) -> None:
    target = groups
    for name in path[:-1]:
        target = target.setdefault(name, {})
    target[path[-1]] = value
