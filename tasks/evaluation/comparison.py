"""Two evaluations in one folder beside each other: by how much the images of one adapter score higher, and where.

Both must have been made of the same cases with the same sampler, and measured by the same encoders. Differences are
paired by case: what a case brings cancels.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ezigen.config import ConfigurationError
from ezigen.metrics.statistics import Interval
from tasks.evaluation.tables import ScoredImage, break_down, differences, means_of
from tasks.storage import OutputFolder
from tasks.storage.filesystems import describe_error

IMAGES_FILE = "images.parquet"
FACTS_FILE = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation by its folder's name."""

    name: str
    images: tuple[ScoredImage, ...] = field(repr=False)
    circumstances: Mapping[str, Mapping[str, str]]
    """By variant what must be equal where two evaluations of it are compared."""
    others: frozenset[str]
    """Lines that another method or adapter made: they equal themselves, and compared would let every adapter pass."""

    def of(self, variant: str) -> list[ScoredImage]:
        """The measured images of a variant."""
        return [image for image in self.images if image.variant == variant]


@dataclass(frozen=True)
class Differences:
    """How two adapters differ in one variant. images: the differences of each case as scores, new - old."""

    variant: str
    images: tuple[ScoredImage, ...] = field(repr=False)

    def means(self, measures: Iterable[str]) -> dict[str, Interval]:
        """Mean differences of those measures that both have, with 95 % intervals over subjects."""
        return means_of(self.images, measures)

    def by_subject(self, measure: str) -> dict[str, Interval]:
        """Mean differences of every subject, the least gain first, with intervals over its prompts."""
        return break_down(self.images, measure, "subject_id")


def compare_evaluations(output: OutputFolder, new: str, old: str) -> tuple[Differences, ...]:
    """The differences in every variant that two evaluations have, in the order of the first.

    Raises ConfigurationError where an evaluation is missing or damaged, or where the two cannot be compared.
    """
    ours, theirs = read_evaluation(output, new), read_evaluation(output, old)
    others = ours.others | theirs.others
    shared = [variant for variant in ours.circumstances if variant in theirs.circumstances and variant not in others]
    if not shared:
        raise ConfigurationError(
            f"{output.root_uri}: {new} and {old} have no variant in common; evaluate both with the same tables."
        )
    for variant in shared:
        _check_alike(output, ours, theirs, variant)
    return tuple(Differences(variant, tuple(differences(ours.of(variant), theirs.of(variant)))) for variant in shared)


def read_evaluation(output: OutputFolder, name: str) -> Evaluation:
    """What an evaluation measured. Raises ConfigurationError where it is missing, unfinished or damaged."""
    where = output.uri(name)
    try:
        facts = json.loads(output.read(f"{name}/{FACTS_FILE}"))
        rows = pq.read_table(pa.BufferReader(output.read(f"{name}/{IMAGES_FILE}"))).to_pylist()
        measured = [row for row in rows if row["scores"]]
        images = tuple(
            ScoredImage(row["variant"], row["case_id"], row["subject_id"], row["prompt_id"], dict(row["scores"]))
            for row in measured
        )
        circumstances = {row["variant"]: _circumstances(facts, row["benchmark"]) for row in measured}
        others = frozenset(map(str, facts["others"]))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{where}: there is no finished evaluation; run `ezigen evaluate ADAPTER {output.root_uri}` first."
        ) from error
    except (ValueError, KeyError, TypeError, pa.ArrowInvalid, OSError) as error:
        raise ConfigurationError(
            f"{where} is damaged ({describe_error(error)}); evaluate the adapter again."
        ) from error
    return Evaluation(name, images, circumstances, others)


def _circumstances(facts: Mapping[str, Any], benchmark: str) -> dict[str, str]:
    own = facts["benchmarks"][benchmark]
    return {
        "benchmark": own["digest"],
        "encoders": own["encoders"],
        "model": facts["model"],
        "sampler": facts["sampler"],
    }


def _check_alike(output: OutputFolder, ours: Evaluation, theirs: Evaluation, variant: str) -> None:
    for name, one in ours.circumstances[variant].items():
        if one != theirs.circumstances[variant][name]:
            raise ConfigurationError(
                f"{output.root_uri}: {ours.name} was evaluated with another {name} than {theirs.name}; evaluate both "
                f"alike (`ezigen evaluate`)."
            )
