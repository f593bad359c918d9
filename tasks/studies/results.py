"""What raters answered: shares of the methods with intervals, and how far raters agree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ezigen.config import ConfigurationError
from ezigen.metrics.statistics import Interval, mean_interval
from tasks.storage import Locations
from tasks.storage.documents import check_name, read_document
from tasks.studies.agreement import fleiss_kappa
from tasks.studies.key import NO_DIFFERENCE, StudyKey

_DIGITS = 4


class Answer(msgspec.Struct, frozen=True):
    """One choice: a label of the case, or NO_DIFFERENCE; when, and after how long a look at the case."""

    case: str
    question: str
    choice: str
    at: str = ""
    seconds: float = 0.0


class AnswersFile(msgspec.Struct, frozen=True):
    """What a page exports."""

    format: Literal["ezigen-study-answers/1"]
    study: str
    rater: str
    answers: list[Answer]


@dataclass(frozen=True)
class Share:
    """How often a method was chosen for a question; method None is "no difference"."""

    question: str
    method: str | None
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain values; ends that are not known are null."""
        ends = (self.interval.low, self.interval.high)
        low, high = (round(end, _DIGITS) if math.isfinite(end) else None for end in ends)
        return {
            "question": self.question,
            "method": self.method,
            "share": round(self.interval.mean, _DIGITS),
            "low": low,
            "high": high,
            "answers": self.interval.count,
            "cases": self.interval.clusters,
        }


@dataclass(frozen=True)
class StudyResults:
    """The outcome of a study."""

    study: str
    num_cases: int
    raters: tuple[str, ...]
    shares: tuple[Share, ...]
    agreement: Mapping[str, float | None]
    """Fleiss' kappa by question; None where it is not defined."""
    num_expected: int
    missing: Mapping[str, int]
    """Answers that were not given, by rater."""
    median_seconds: float | None
    """Half of the answers took no longer."""

    @property
    def num_missing(self) -> int:
        """Answers that were not given."""
        return sum(self.missing.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "study": self.study,
            "cases": self.num_cases,
            "raters": list(self.raters),
            "answers": {"expected": self.num_expected, "missing": self.num_missing, "missing_by_rater": self.missing},
            "median_seconds": self.median_seconds,
            "shares": [share.to_json() for share in self.shares],
            "fleiss_kappa": {
                name: None if kappa is None else round(kappa, _DIGITS) for name, kappa in self.agreement.items()
            },
        }


def read_results(key_uri: str, answer_uris: Sequence[str], locations: Locations | None = None) -> StudyResults:
    """The outcome of a study by its key and the files of its raters.

    Raises ConfigurationError, naming the file, for one that is damaged, belongs to another study, repeats a rater, or
    speaks of a case, question or label that the study does not have.
    """
    locations = locations or Locations()
    key = read_document(key_uri, StudyKey, "the key of a study", locations)
    files: dict[str, AnswersFile] = {}
    read_from: dict[str, str] = {}
    for uri in answer_uris:
        answers = _read_answers(uri, key, locations)
        rater = check_name(answers.rater, f"{uri}: the rater")
        if rater in files:
            raise ConfigurationError(
                f"{uri} and {read_from[rater]} are both of the rater {rater!r}; give each rater's last file once."
            )
        files[rater], read_from[rater] = answers, uri
    return _evaluate(key, files)


def _read_answers(uri: str, key: StudyKey, locations: Locations) -> AnswersFile:
    answers = read_document(uri, AnswersFile, "a file of answers", locations)
    if answers.study != key.study:
        raise ConfigurationError(f"{uri} answers another study ({answers.study[:32]}, not {key.study}); leave it out.")
    _check_answers(uri, key, answers.answers)
    return answers


def _check_answers(uri: str, key: StudyKey, answers: Sequence[Answer]) -> None:
    labels = {case.case: case.labels for case in key.cases}
    seen: set[tuple[str, str]] = set()
    for number, answer in enumerate(answers, 1):
        place = f"{uri}: answer {number}"
        if answer.case not in labels:
            raise ConfigurationError(f"{place} is about {answer.case[:40]!r}, which the study does not have.")
        if answer.question not in key.questions:
            raise ConfigurationError(f"{place} is to {answer.question[:40]!r}, which the study does not ask.")
        if answer.choice != NO_DIFFERENCE and answer.choice not in labels[answer.case]:
            raise ConfigurationError(f"{place} chooses {answer.choice[:40]!r}, which is no label of {answer.case}.")
        if (answer.case, answer.question) in seen:
            raise ConfigurationError(f"{place} is the second one of {answer.case} to {answer.question}; keep one.")
        seen.add((answer.case, answer.question))


def _evaluate(key: StudyKey, files: Mapping[str, AnswersFile]) -> StudyResults:
    answers = [answer for file in files.values() for answer in file.answers]
    if not answers:
        raise ConfigurationError("the files hold no answers; export them again at the end of the page.")
    per_rater = len(key.cases) * len(key.questions)
    chosen = {name: _chosen(key, [answer for answer in answers if answer.question == name]) for name in key.questions}
    methods: tuple[str | None, ...] = (*key.methods, None)
    seconds = sorted(answer.seconds for answer in answers if answer.seconds > 0)
    return StudyResults(
        study=key.study,
        num_cases=len(key.cases),
        raters=tuple(files),
        shares=tuple(share for name, given in chosen.items() for share in _shares(name, given, methods)),
        agreement={name: fleiss_kappa(_count(given, methods)) for name, given in chosen.items()},
        num_expected=per_rater * len(files),
        missing={rater: per_rater - len(file.answers) for rater, file in files.items()},
        median_seconds=seconds[len(seconds) // 2] if seconds else None,
    )


def _chosen(key: StudyKey, answers: Sequence[Answer]) -> list[tuple[str, str | None]]:
    """(case, method) of each answer."""
    labels = {case.case: case.labels for case in key.cases}
    return [(answer.case, labels[answer.case].get(answer.choice)) for answer in answers]


def _shares(question: str, chosen: Sequence[tuple[str, str | None]], methods: Sequence[str | None]) -> list[Share]:
    if not chosen:
        return []
    cases = [case for case, _ in chosen]
    return [
        Share(question, method, mean_interval([float(choice == method) for _, choice in chosen], cases))
        for method in methods
    ]


def _count(chosen: Sequence[tuple[str, str | None]], methods: Sequence[str | None]) -> list[list[int]]:
    """(cases, methods): how many raters chose each."""
    counts = {case: [0] * len(methods) for case, _ in chosen}
    for case, method in chosen:
        counts[case][methods.index(method)] += 1
    return list(counts.values())
