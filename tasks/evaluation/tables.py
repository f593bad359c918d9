"""Tables of what was measured, beside what was published, and whether the two agree. Everything is computed from rows.

A row is one measured image: which variant made it, of whom, asked for what, and its scores by measure. Means have
95 % intervals over subjects; differences between variants are paired by case, so what a case brings cancels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ezigen.metrics.statistics import Direction, Interval, mean_interval
from tasks.evaluation.paper import Claim, PaperTable

Verdict = Literal["agrees", "disagrees", "undecided"]

_OF_CLAIMS: Mapping[Direction, Verdict] = {"higher": "agrees", "lower": "disagrees", "undecided": "undecided"}

LOWER_IS_BETTER = frozenset({"perceptual"})


@dataclass(frozen=True)
class ScoredImage:
    """One measured image."""

    variant: str
    case_id: str
    subject_id: str
    prompt_id: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class TableRow:
    """One line: means by measure, what was published, and how many images were not made or not measured."""

    title: str
    means: Mapping[str, Interval]
    published: Mapping[str, float]
    missing: int = 0


@dataclass(frozen=True)
class Trend:
    """A claim of the paper and what was measured of it: the paired difference of the two, in the claim's direction."""

    claim: Claim
    difference: Interval

    @property
    def verdict(self) -> Verdict:
        """What the difference says of the claim; undecided where the images are too few."""
        return _OF_CLAIMS[self.difference.direction]


@dataclass(frozen=True)
class MeasuredTable:
    """A table of the paper, measured. num_cases: images that each line could have."""

    table: PaperTable
    rows: tuple[TableRow, ...]
    trends: tuple[Trend, ...]
    num_cases: int


def measure_table(table: PaperTable, images: Iterable[ScoredImage], num_cases: int) -> MeasuredTable:
    """The table of these images; those of other variants are left alone. A variant without any image has no row."""
    by_variant: dict[str, list[ScoredImage]] = {variant.name: [] for variant in table.variants}
    for image in images:
        if image.variant in by_variant:
            by_variant[image.variant].append(image)
    rows = tuple(
        TableRow(
            variant.title,
            means_of(by_variant[variant.name], table.measures),
            variant.published,
            missing=num_cases - len(by_variant[variant.name]),
        )
        for variant in table.variants
        if by_variant[variant.name]
    )
    trends = [
        Trend(claim, difference)
        for claim in table.claims
        if (difference := compare(by_variant[claim.higher], by_variant[claim.lower], claim.measure)) is not None
    ]
    return MeasuredTable(table, rows, tuple(trends), num_cases)


def means_of(images: Sequence[ScoredImage], measures: Iterable[str]) -> dict[str, Interval]:
    """Mean and interval over subjects of every measure that some image has; each over the images that have it."""
    means = {}
    for measure in measures:
        found = [(image.scores[measure], image.subject_id) for image in images if _has(image, measure)]
        if found:
            values, subjects = zip(*found, strict=True)
            means[measure] = mean_interval(values, subjects)
    return means


def compare(first: Sequence[ScoredImage], second: Iterable[ScoredImage], measure: str) -> Interval | None:
    """First - second over the cases that both have measured; None where there is no such case."""
    return means_of(differences(first, second), [measure]).get(measure)


def differences(first: Iterable[ScoredImage], second: Iterable[ScoredImage]) -> list[ScoredImage]:
    """First - second of every case that both have, in the measures that both have."""
    known = {image.case_id: image.scores for image in second}
    return [
        replace(image, scores={name: score - other[name] for name, score in image.scores.items() if name in other})
        for image in first
        if (other := known.get(image.case_id)) is not None
    ]


def break_down(
    images: Iterable[ScoredImage], measure: str, by: Literal["subject_id", "prompt_id"]
) -> dict[str, Interval]:
    """Means per subject, or per prompt, worst first; prompts have intervals over subjects, subjects over prompts."""
    other = "prompt_id" if by == "subject_id" else "subject_id"
    groups: dict[str, list[ScoredImage]] = {}
    for image in images:
        if _has(image, measure):
            groups.setdefault(getattr(image, by), []).append(image)
    means = {
        name: mean_interval([one.scores[measure] for one in group], [getattr(one, other) for one in group])
        for name, group in groups.items()
    }
    sign = -1 if measure in LOWER_IS_BETTER else 1
    return dict(sorted(means.items(), key=lambda entry: sign * entry[1].mean))


def worst_cases(images: Iterable[ScoredImage], measure: str, count: int) -> list[ScoredImage]:
    """The images with the worst scores, worst first; equal ones by their case."""
    sign = -1 if measure in LOWER_IS_BETTER else 1
    known = [image for image in images if _has(image, measure)]
    return sorted(known, key=lambda image: (sign * image.scores[measure], image.case_id))[:count]


def _has(image: ScoredImage, measure: str) -> bool:
    return math.isfinite(image.scores.get(measure, math.nan))
