"""How far a training run is, and what came of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tasks.storage import RunState

if TYPE_CHECKING:
    from tasks.training.measurements import Measurement

Phase = Literal["starting", "training", "measuring", "restarting", "resizing", "ending"]
"""starting: workers load; restarting: the same after a loss; resizing: the same in another number; ending: the last
checkpoint and measurement."""


@dataclass(frozen=True)
class TrainingProgress:
    """A moment of a run, as far as the first worker has reported."""

    phase: Phase
    step: int
    """Train steps done, those of earlier runs included."""
    num_steps: int
    checkpoint_step: int = 0
    """Step of the newest stored checkpoint: what a loss now would not take away."""
    loss: float | None = None
    """Mean of the last steps; None before the first one of this run."""
    grad_norm: float | None = None
    lr: float | None = None
    samples_per_s: float = 0.0
    eta_s: float | None = None
    """None while no step of this run is done."""
    num_workers: int = 0
    num_restarts: int = 0
    """How often the workers of this run were started anew."""


@dataclass(frozen=True)
class TrainingOutcome:
    """The end of a run, in numbers."""

    run_id: str
    state: RunState
    run: str
    """Name of the run's folder: <name>-<digest>."""
    run_uri: str
    step: int
    """Train steps done, those of earlier runs included."""
    num_steps: int
    steps_made: int = 0
    """By this run; steps that were made twice because of a loss count once."""
    loss: float | None = None
    """Mean of the last 100 steps; None if there is none."""
    measurements: tuple["Measurement", ...] = ()
    """Of the whole run, by step."""
    seconds: float = 0.0
    samples_per_s: float = 0.0
    """While it trained, start and measurements left out."""
    num_workers: int = 0
    num_restarts: int = 0
    final_uri: str = ""
    """The folder of the final weights, adapter.safetensors and card.json; empty unless the run is finished."""

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because it was asked to."""
        return self.state == "stopped"

    @property
    def nothing_to_do(self) -> bool:
        """Whether everything was there already."""
        return self.state == "finished" and not self.steps_made and not self.seconds
