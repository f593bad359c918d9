"""train_adapter on a small store of the tiny model: as the flow does it, or on one worker without Ray."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors.numpy import load as load_tensors

from ezigen.config import (
    MonitoringConfig,
    OptimizerConfig,
    StackConfig,
    TrainingClusterConfig,
    TrainingConfig,
    TrainingInputs,
)
from tasks.storage import Locations, OutputFolder
from tasks.storage.lease import Lease
from tasks.training.checkpoints import COMPLETE, FOLDER, Checkpoints, checkpoint_name
from tasks.training.log import WALL_COLUMNS, read_log
from tasks.training.outcome import TrainingOutcome
from tasks.training.plan import FINAL, TrainingPlan, plan_training
from tasks.training.run import run_training
from tests.features.pairs_files import make_row, write_pairs
from tests.features.stage import Stage as FeatureStage

NUM_STEPS, EVERY = 80, 8
CONFIG: dict[str, Any] = {
    "num_steps": NUM_STEPS,
    "batch_size": 4,
    "held_out_share": 0.2,
    "subject_dropout": 0.3,
    "text_dropout": 0.2,
    "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=3, schedule="cosine", ema_decay=0.9),
}
MONITORING: dict[str, Any] = {
    "checkpoint_every": EVERY,
    "num_checkpoints": 2,
    "validate_every": 30,
    "num_loss_pairs": 6,
    "num_subjects": 0,
}


def write_store(root: Path | str, model: Path, num_pairs: int = 20) -> str:
    """Pairs and their features below a folder; returns the store's location."""
    rows = [make_row(index) for index in range(num_pairs)]
    write_pairs(f"{root}/pairs", rows, pairs_per_shard=10)
    FeatureStage(f"{root}/pairs", f"{root}/features", model).make_here()
    return f"{root}/features"


@dataclass
class Stage:
    """A configuration of training on a store, to be run as often as one likes."""

    features: str
    root: Path | str
    model: Path | str
    config: dict[str, Any] = field(default_factory=dict)
    monitoring: dict[str, Any] = field(default_factory=dict)
    locations: Locations = field(default_factory=Locations)

    def plan(self, **inputs: Any) -> TrainingPlan:
        wanted = TrainingInputs(features_uri=str(self.features), output_uri=str(self.root), **inputs)
        model = StackConfig(model=str(self.model), device="cpu")
        return plan_training(wanted, TrainingConfig(**{**CONFIG, **self.config}), model, self.locations)

    def run(self, plan: TrainingPlan | None = None, **options: Any) -> TrainingOutcome:
        """Plan and run under a lease, as the flow does."""
        plan = plan or self.plan()
        cluster = options.pop("cluster", None) or TrainingClusterConfig(num_workers=1)
        monitoring = MonitoringConfig(**{**MONITORING, **self.monitoring})
        with Lease(plan.output, "test", ttl_s=5) as lease:
            return run_training(
                plan,
                plan.output,
                cluster=cluster,
                monitoring=monitoring,
                locations=self.locations,
                lease=lease,
                **options,
            )


@dataclass(frozen=True)
class Stored:
    """What a run has stored, as tests compare it."""

    output: OutputFolder

    @property
    def steps(self) -> list[int]:
        """Of the complete checkpoints."""
        return [checkpoint.step for checkpoint in Checkpoints(self.output).find()]

    @property
    def log(self) -> pa.Table:
        """Everything in the log that is not the time of day."""
        return read_log(self.output).drop_columns(list(WALL_COLUMNS))

    def checkpoint(self, step: int = NUM_STEPS) -> dict[str, Any]:
        """Every tensor of a checkpoint: weights, averages, state of the optimizer."""
        folder = f"{FOLDER}/{checkpoint_name(step)}"
        names = [name for name in self.output.list(folder) if name.endswith(".safetensors")]
        return {f"{name}/{key}": tensor for name in names for key, tensor in self.tensors(f"{folder}/{name}").items()}

    @property
    def final(self) -> dict[str, Any]:
        """The final weights."""
        return self.tensors(f"{FINAL}/adapter.safetensors")

    def measurements(self) -> dict[str, bytes]:
        """As they are stored."""
        return {name: self.output.read(f"validation/{name}") for name in self.output.list("validation")}

    def folders(self) -> set[str]:
        """Of the checkpoints, complete or not."""
        filesystem, path = self.output.filesystem, self.output.path(FOLDER)
        entries = filesystem.ls(path, detail=True)
        return {entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "directory"}

    def tensors(self, relative: str) -> dict[str, Any]:
        return load_tensors(self.output.read(relative))


def assert_equal_tensors(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    assert left
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert tensor.tobytes() == right[name].tobytes(), name


def assert_equal_runs(left: Stored, right: Stored, step: int = NUM_STEPS) -> None:
    """Weights, optimizer, log and measurements are those of the other run, to the last bit."""
    assert left.log.equals(right.log)
    assert left.log.column("step").to_pylist() == list(range(1, step + 1))
    assert_equal_tensors(left.checkpoint(step), right.checkpoint(step))
    assert_equal_tensors(left.final, right.final)
    assert left.measurements() == right.measurements()


@contextlib.contextmanager
def at_checkpoint(stored: Stored, step: int, act: Callable[[], object]) -> Iterator[None]:
    """Does something once, within milliseconds after the checkpoint of a step, or of a later one, is complete.

    Progress comes a few times a second, which is too late for a short run.
    """
    ended = threading.Event()
    folder = Path(stored.output.path(FOLDER))

    def is_stored() -> bool:
        return any(path.parent.name >= checkpoint_name(step) for path in folder.glob(f"*/{COMPLETE}"))

    def watch() -> None:
        while not is_stored() and not ended.wait(0.003):
            pass
        if not ended.is_set():
            act()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
