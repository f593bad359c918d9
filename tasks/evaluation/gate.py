"""Whether one adapter may take the place of another: no measure that counts is worse by more than a margin.

Both must have been evaluated in one folder, on the same cases, made with the same sampler, and measured by the same
encoders. Differences are paired by case, with 95 % intervals over subjects. A measure passes if the whole interval of
new - old lies above minus the margin: "not worse" has to be shown, and too few cases show nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ezigen.config import ConfigurationError
from ezigen.metrics.statistics import Interval
from tasks.evaluation.comparison import compare_evaluations
from tasks.reports.wording import score_name
from tasks.storage import OutputFolder


@dataclass(frozen=True)
class Check:
    """One measure of the new adapter against the old one."""

    measure: str
    margin: float
    difference: Interval

    @property
    def passed(self) -> bool:
        """Whether it is shown that the measure fell by no more than the margin."""
        return self.difference.low >= -self.margin

    def describe(self) -> str:
        """DINO -0.013 [-0.019, -0.007], may fall by 0.020: passed."""
        verdict = "passed" if self.passed else "failed"
        return f"{score_name(self.measure)} {self.difference.signed()}, may fall by {self.margin:.3f}: {verdict}"


@dataclass(frozen=True)
class Comparison:
    """A new adapter beside the one whose place it shall take, by their evaluations' folders."""

    new: str
    old: str
    variant: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every measure passed."""
        return all(check.passed for check in self.checks)

    def describe(self) -> str:
        """toys-v3 against toys-v2: DINO ..., CLIP-T ...."""
        return f"{self.new} against {self.old}: {'; '.join(check.describe() for check in self.checks)}"


def compare_adapters(output: OutputFolder, new: str, old: str, margins: Mapping[str, float]) -> Comparison:
    """Compares what two evaluations in one folder measured, in the last variant that both have.

    margins: measure -> by how much it may fall. Raises ConfigurationError where an
    evaluation is missing or damaged, where the two cannot be compared, or where one lacks a measure.
    """
    last = compare_evaluations(output, new, old)[-1]
    found = last.means(margins)
    checks = []
    for measure, margin in margins.items():
        if measure not in found:
            raise ConfigurationError(f"{output.root_uri}: {new} and {old} share no case with {score_name(measure)}.")
        checks.append(Check(measure, margin, found[measure]))
    return Comparison(new, old, last.variant, tuple(checks))
