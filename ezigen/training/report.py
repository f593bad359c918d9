"""What one train step tells. Importing this costs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """One train step over all processes; equal in each of them.

    loss is the objective: the mean over the global batch, weighted where min-SNR weighs. By source, in the order of
    SOURCES, are the mean unweighted loss, 0 where there were no samples, and how many there were.
    """

    step: int
    """Optimizer steps done, this one included."""
    loss: float
    grad_norm: float
    """Of the gradient before clipping."""
    lr: float
    samples: int
    loss_by_source: tuple[float, ...]
    samples_by_source: tuple[int, ...]
    flag: bool
    """Whether any process raised its flag."""


class TrainingDiverged(Exception):  # noqa: N818 - a state of the run, not a mistake in the program
    """A step whose loss or gradient is not finite, or too large. Its update was not made: the weights are those before.

    step counts from 1; what is `loss` or `gradient norm`.
    """

    def __init__(self, step: int, what: str, value: float, limit: float = 0.0) -> None:
        above = f", above max_loss {limit:g}" if limit else ""
        super().__init__(
            f"training diverged at step {step}: the {what} is {value:g}{above}. The step was not made; the last "
            "checkpoint is good. Lower optimizer.lr, or set optimizer.warmup_steps and optimizer.clip_norm"
        )
        self.step, self.what, self.value, self.limit = step, what, value, limit

    def __reduce__(self) -> tuple[type["TrainingDiverged"], tuple[int, str, float, float]]:
        # The default rebuilds an exception from its args, which would lose the numbers between processes.
        return type(self), (self.step, self.what, self.value, self.limit)
