"""What a training run would do: its folder, how long it is, and where it continues."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ezigen.config import ConfigurationError, StackConfig, TrainingConfig, TrainingInputs
from tasks.storage.folder import OutputFolder
from tasks.storage.locations import Locations, locate
from tasks.training.checkpoints import Checkpoints

if TYPE_CHECKING:
    from tasks.training.data import TrainingSet

FLOW = "train_adapter"
FORMAT_VERSION = 1
"""Raised when a change of the code makes other weights of the same configuration: such runs must not be continued."""

FINAL = "final"
"""The folder of the final weights: adapter.safetensors and, written last, card.json."""

_DIGEST_DIGITS = 16


@dataclass(frozen=True)
class TrainingPlan:
    """What is to do. Small and picklable."""

    inputs: TrainingInputs
    config: TrainingConfig
    model: StackConfig
    output: OutputFolder
    """The run's own folder."""
    digest: str
    """Of everything that decides which weights come out."""
    fingerprints: Mapping[str, str]
    """What went into the digest: model, features, store, initial adapter."""
    num_steps: int
    checkpoint_step: int
    """Step of the newest stored checkpoint, 0 if there is none."""
    finished: bool
    """Whether the final weights are stored."""
    num_samples: Mapping[str, int]
    """Training samples by source."""
    num_held_out: int
    initial_adapter: str = ""
    """Adapter to start from, an alias already replaced by the version that it meant; empty: none."""
    pairs_uri: str = ""
    """Where the pictures of held-out subjects are."""
    notes: tuple[str, ...] = field(default=())

    @property
    def run(self) -> str:
        """Name of the run's folder."""
        return self.output.root_uri.rpartition("/")[2]

    @property
    def steps_to_do(self) -> int:
        """Train steps that no checkpoint holds yet."""
        return 0 if self.finished else self.num_steps - self.checkpoint_step

    @property
    def num_epochs(self) -> float:
        """Passes over the training samples, all sources together."""
        return self.num_steps * self.config.batch_size / max(1, sum(self.num_samples.values()))

    def describe(self) -> list[tuple[str, str]]:
        """The plan as a table of two columns, for a terminal or a page."""
        samples = ", ".join(f"{count:,} {source}" for source, count in self.num_samples.items())
        config = self.config
        left_out = f"{_percent(config.subject_dropout)} of subjects, {_percent(config.text_dropout)} of captions"
        rows = [
            ("run", self.output.root_uri),
            ("training samples", samples),
            ("held-out pairs", f"{self.num_held_out:,}"),
            ("steps", f"{self.num_steps:,} of {config.batch_size:,} samples ({self.num_epochs:.3g} epochs)"),
            ("left out", left_out),
            ("steps to do", f"{self.steps_to_do:,}"),
        ]
        if self.initial_adapter:
            rows.append(("starts from", self.initial_adapter))
        return [*rows, *(("note", note) for note in self.notes)]


def plan_training(
    inputs: TrainingInputs,
    config: TrainingConfig,
    model: StackConfig,
    locations: Locations | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> TrainingPlan:
    """Reads the index of the feature store, no features and no pictures, and decides what is to do. Writes nothing.

    The run's folder follows from what decides the weights, so the caller takes its lease on `plan.output` afterwards;
    `run_training` looks again at what is stored. `check` is called between reads. Raises ConfigurationError if there is
    no finished store, if it is of another model, or if it cannot serve the configuration.
    """
    from ezigen.models import model_fingerprint
    from ezigen.models.location import is_xl, resolve_folder
    from tasks.training.data import TrainingSet

    _check_locations(inputs)
    config = config.for_model(xl=is_xl(resolve_folder(model.model)))
    check_dtype(config, model)
    model_digest = model_fingerprint(model.model)
    initial, initial_digest = _find_initial(inputs, model, locations)
    check()
    data = TrainingSet.open(inputs.features_uri, config, locations, model_fingerprint=model_digest)
    fingerprints = {
        "model": model_digest,
        "features": data.identity.digest(),
        "store": data.digest,
        "initial_adapter": initial_digest,
    }
    digest = _digest(config, fingerprints)
    check()
    output = OutputFolder(f"{inputs.output_uri.rstrip('/')}/{inputs.name}-{digest[:_DIGEST_DIGITS]}", locations)
    done = Checkpoints(output).find()
    return TrainingPlan(
        inputs=inputs,
        config=config,
        model=model,
        output=output,
        digest=digest,
        fingerprints=fingerprints,
        num_steps=data.num_steps(config),
        checkpoint_step=done[-1].step if done else 0,
        finished=is_finished(output),
        num_samples=_count_samples(data),
        num_held_out=len(data.held_out),
        initial_adapter=initial,
        pairs_uri=inputs.pairs_uri or data.pairs_uri,
        notes=data.notes,
    )


def is_finished(output: OutputFolder) -> bool:
    """Whether a run's final weights are stored, which is the last thing that its workers do."""
    from ezigen.adapters.card import CARD_FILE

    return CARD_FILE in output.list(FINAL)


def _percent(share: float | str) -> str:
    return f"{100 * float(share):.3g} %"


def _digest(config: TrainingConfig, fingerprints: Mapping[str, str]) -> str:
    content = {"version": FORMAT_VERSION, "config": config.identity(), **fingerprints}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _count_samples(data: "TrainingSet") -> dict[str, int]:
    from ezigen.training.batch import SOURCES

    return {source: data.num_samples(source) for source in SOURCES}


def _find_initial(inputs: TrainingInputs, model: StackConfig, locations: Locations | None) -> tuple[str, str]:
    """Where the adapter to start from lies, whatever an alias means later, and the fingerprint of its weights."""
    from ezigen.adapters import adapter_fingerprint
    from tasks.adapters import find_adapter, local_adapter

    if not inputs.initial_adapter:
        return "", ""
    if inputs.initial_adapter == "none":
        raise ConfigurationError(
            'inputs.initial_adapter is "none"; leave it empty to start from copies of the self-attention layers.'
        )
    location = find_adapter(inputs.initial_adapter, inputs.adapters_uri, locations)
    folder = local_adapter(location, model.model, inputs.adapters_uri, locations)
    return location, adapter_fingerprint(str(folder), model.model)


def check_dtype(config: TrainingConfig, model: StackConfig) -> None:
    """Raises ConfigurationError for a model.dtype that training would not compute in.

    The networks are loaded in fp32, because adapters begin as copies of their layers, and cast to training.precision.
    """
    if model.dtype not in ("auto", config.precision):
        allowed = "auto" if config.precision == "auto" else f"auto or {config.precision}"
        wanted = f", or training.precision to {model.dtype}" if model.dtype in ("fp32", "bf16") else ""
        raise ConfigurationError(
            f"model.dtype is {model.dtype}, but what training computes in is training.precision ({config.precision}: "
            f"auto, fp32 or bf16); set model.dtype to {allowed}{wanted}."
        )


def _check_locations(inputs: TrainingInputs) -> None:
    if locate(inputs.output_uri) == locate(inputs.features_uri):
        raise ConfigurationError(
            f"output_uri {inputs.output_uri} is features_uri too; choose another folder for training runs."
        )
