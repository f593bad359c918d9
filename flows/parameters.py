"""The parameters of a catalog run from what a person types: preset, flags, and `--set group.field=value`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ezigen.config import (
    PRESETS,
    CatalogInputs,
    ClusterConfig,
    ConfigurationError,
    ModelConfig,
    SamplerConfig,
)

Values = dict[str, Any]


@dataclass(frozen=True)
class CatalogParameters:
    """The four groups that the flow `personalize_catalog` takes."""

    inputs: CatalogInputs
    model: ModelConfig
    sampler: SamplerConfig
    cluster: ClusterConfig


GROUPS: Mapping[str, type[BaseModel]] = {
    "inputs": CatalogInputs,
    "model": ModelConfig,
    "sampler": SamplerConfig,
    "cluster": ClusterConfig,
}


def build_parameters(
    *,
    inputs: Values,
    model: Values,
    sampler: Values,
    cluster: Values,
    preset: str = "auto",
    assignments: Sequence[str] = (),
) -> CatalogParameters:
    """Checked parameters; None means "not given". Assignments come last and win.

    Raises ConfigurationError for an unknown preset or field and pydantic's ValidationError for a value out of bounds.
    """
    groups = {"inputs": inputs, "model": model, "sampler": {}, "cluster": cluster}
    groups = {name: _given(values) for name, values in groups.items()}
    overrides = [_parse_assignment(text) for text in assignments]
    for path, value in overrides:
        if path[0] == "model":
            _assign(groups, path, value)
    groups["sampler"] = _preset_values(preset, groups["model"]) | _given(sampler)
    for path, value in overrides:
        _assign(groups, path, value)
    return CatalogParameters(
        inputs=CatalogInputs.model_validate(groups["inputs"]),
        model=ModelConfig.model_validate(groups["model"]),
        sampler=SamplerConfig.model_validate(groups["sampler"]),
        cluster=ClusterConfig.model_validate(groups["cluster"]),
    )


def preset_for(model: str) -> str:
    """The preset that "auto" stands for: the embedded model has its own, everything else gets the paper's."""
    return "embedded" if model == "mini" else "paper"


def describe_invalid(error: ValidationError) -> list[str]:
    """One line per wrong value: the field, what is allowed, and what was given."""
    group = {model.__name__: name for name, model in GROUPS.items()}.get(error.title, "")
    return [_describe_problem(group, dict(problem)) for problem in error.errors(include_url=False)]


def _describe_problem(group: str, problem: Values) -> str:
    path = ".".join(str(part) for part in ([group] if group else []) + list(problem["loc"]))
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {given!r})"
    return f"{path}: {message}{shown}" if problem["loc"] else f"{group}: {message}"


def _given(values: Values) -> Values:
    return {name: value for name, value in values.items() if value is not None}


def _preset_values(preset: str, model: Values) -> Values:
    name = preset_for(model.get("model", "mini")) if preset == "auto" else preset
    if name not in PRESETS:
        raise ConfigurationError(f"--preset {preset!r} is unknown; use one of auto, {', '.join(PRESETS)}.")
    return PRESETS[name]().model_dump()


def _parse_assignment(text: str) -> tuple[list[str], Any]:
    """`sampler.loops.max_loops=4` as its path and value; a value that is no JSON is taken as text."""
    name, sign, raw = text.partition("=")
    path = name.strip().split(".")
    if not sign or len(path) < 2 or path[0] not in GROUPS:
        raise ConfigurationError(
            f"--set {text!r}: write GROUP.FIELD=VALUE with one of the groups {', '.join(GROUPS)}, "
            "as in sampler.loops.max_loops=4."
        )
    _check_path(text, path)
    try:
        value = json.loads(raw)
    except ValueError:
        value = raw
    return path, value


def _check_path(text: str, path: Sequence[str]) -> None:
    model: type[BaseModel] | None = GROUPS[path[0]]
    for depth, name in enumerate(path[1:], start=1):
        fields = model.model_fields if model is not None else {}
        if name not in fields:
            known = f"known fields: {', '.join(fields)}" if fields else "it has no fields of its own"
            raise ConfigurationError(f"--set {text!r}: {'.'.join(path[:depth])} has no field {name!r}; {known}.")
        model = _nested_model(fields[name])


def _nested_model(field: FieldInfo) -> type[BaseModel] | None:
    candidates = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _assign(groups: Values, path: Sequence[str], value: Any) -> None:
    target = groups
    for name in path[:-1]:
        target = target.setdefault(name, {})
    target[path[-1]] = value
