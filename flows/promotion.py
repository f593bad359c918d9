"""Whether a version may take the place of the one that an alias points to, and pointing it there. Needs no Prefect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ezigen.config import ConfigurationError
from flows.evaluation_job import folder_name
from flows.job import Summary
from flows.terminal import out

if TYPE_CHECKING:
    from tasks.adapters import Registry
    from tasks.evaluation.gate import Comparison
    from tasks.storage import OutputFolder


@dataclass(frozen=True)
class PromotionSummary(Summary):
    """What came of a promotion; `failure` says why there was none."""

    reference: str
    alias: str
    before: str = ""
    """The version that the alias pointed to; empty: there was none."""
    comparison: "Comparison | None" = None

    @property
    def stopped(self) -> bool:
        """Never: it is one step."""
        return False

    def describe(self) -> str:
        """toys@v3 is production now, before toys@v2."""
        name = self.reference.partition("@")[0]
        if self.failure:
            return self.failure
        if self.before == self.reference:
            return f"{self.reference} is {name}@{self.alias} already"
        before = f", which was {self.before}" if self.before else ""
        return f"{self.reference} is {name}@{self.alias} now{before}"

    def print_details(self) -> None:
        """What was compared."""
        if self.comparison is not None:
            for check in self.comparison.checks:
                out.print(f"- {check.describe()}")


def promote_if_no_worse(
    registry: "Registry", reference: str, alias: str, evaluations: "OutputFolder", margins: Mapping[str, float]
) -> PromotionSummary:
    """Points the alias to a version if no measure of `margins` is worse by more than its margin than what the alias
    points to now. The first version of an alias needs no comparison.

    Raises ConfigurationError as `tasks.evaluation.gate.compare_adapters`: for versions that were not evaluated there.
    """
    from tasks.evaluation.gate import compare_adapters

    wanted = registry.resolve(reference)
    before = current_version(registry, wanted.name, alias)
    if before in ("", wanted.reference):
        registry.promote(wanted.name, wanted.version, alias)
        return PromotionSummary(reference=wanted.reference, alias=alias, before=before)
    comparison = compare_adapters(evaluations, folder_name(wanted.reference), folder_name(before), margins)
    failure = ""
    if comparison.passed:
        registry.promote(wanted.name, wanted.version, alias)
    else:
        failure = f"{wanted.reference} does not become {alias}, which stays {before}: {comparison.describe()}"
    return PromotionSummary(
        reference=wanted.reference, alias=alias, before=before, comparison=comparison, failure=failure
    )


def current_version(registry: "Registry", name: str, alias: str) -> str:
    """NAME@VERSION that an alias points to now; "" if it points nowhere."""
    record = registry.aliases(name).get(alias)
    return "" if record is None else f"{name}@{record.version}"


def parse_margins(texts: Sequence[str]) -> dict[str, float]:
    """`dino=0.02` as measure and margin. Raises ConfigurationError."""
    margins = {}
    for text in texts:
        name, sign, number = text.partition("=")
        try:
            margin = float(number)
        except ValueError:
            margin = -1.0
        if not sign or not name or not 0 <= margin < float("inf"):
            raise ConfigurationError(f"--margin {text!r}: write MEASURE=NUMBER, as in dino=0.02")
        margins[name.strip()] = margin
    return margins
