"""Whether one adapter may take the place of another: no measure that counts is worse by more than a margin.

Both must have been evaluated in one folder, on the same cases, made with the same sampler, and measured by the same
encoders. Differences are paired by case, with 95 % intervals over subjects. A measure passes if the whole interval of
new - old lies above minus the margin: "not worse" has to be shown, and too few cases show nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ezigen.config import ConfigurationError
from ezigen.metrics.statistics import Interval
from tasks.evaluation.tables import ScoredImage, compare
from tasks.reports.wording import score_name
from tasks.storage import OutputFolder
from tasks.storage.filesystems import describe_error

IMAGES_FILE = "images.parquet"
FACTS_FILE = "evaluation.json"


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
        found = self.difference
        ends = f" [{found.low:+.3f}, {found.high:+.3f}]" if found.clusters > 1 else " (one subject)"
        verdict = "passed" if self.passed else "failed"
        return f"{score_name(self.measure)} {found.mean:+.3f}{ends}, may fall by {self.margin:.3f}: {verdict}"


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
    ours, theirs = (_read(output, name) for name in (new, old))
    for field, one in ours.facts.items():
        if field in _MUST_BE_EQUAL and one != theirs.facts.get(field):
            raise ConfigurationError(
                f"{output.root_uri}: {new} was evaluated with another {field} than {old}; evaluate both alike "
                f"(`ezigen evaluate`)."
            )
    # Other methods lie in both evaluations and equal themselves: to compare them would let everything pass.
    known = {image.variant for image in theirs.images} - {
        *ours.facts.get("others", ()),
        *theirs.facts.get("others", ()),
    }
    shared = [name for name in dict.fromkeys(image.variant for image in ours.images) if name in known]
    if not shared:
        raise ConfigurationError(
            f"{output.root_uri}: {new} and {old} have no variant in common; evaluate both with the same tables."
        )
    variant = shared[-1]
    first, second = ([image for image in side.images if image.variant == variant] for side in (ours, theirs))
    checks = []
    for measure, margin in margins.items():
        difference = compare(first, second, measure)
        if difference is None:
            raise ConfigurationError(f"{output.root_uri}: {new} and {old} share no case with {score_name(measure)}.")
        checks.append(Check(measure, margin, difference))
    return Comparison(new, old, variant, tuple(checks))


_MUST_BE_EQUAL = ("benchmark", "encoders", "model", "sampler")


@dataclass(frozen=True)
class _Evaluation:
    facts: Mapping[str, Any]
    images: tuple[ScoredImage, ...]


def _read(output: OutputFolder, name: str) -> _Evaluation:
    where = output.uri(name)
    try:
        facts = json.loads(output.read(f"{name}/{FACTS_FILE}"))
        rows = pq.read_table(pa.BufferReader(output.read(f"{name}/{IMAGES_FILE}"))).to_pylist()
        images = tuple(
            ScoredImage(row["variant"], row["case_id"], row["subject_id"], row["prompt_id"], dict(row["scores"]))
            for row in rows
            if row["scores"]
        )
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{where}: there is no finished evaluation; run `ezigen evaluate ADAPTER {output.root_uri}` first."
        ) from error
    except (ValueError, KeyError, TypeError, pa.ArrowInvalid, OSError) as error:
        raise ConfigurationError(
            f"{where} is damaged ({describe_error(error)}); evaluate the adapter again."
        ) from error
    return _Evaluation(facts, images)
