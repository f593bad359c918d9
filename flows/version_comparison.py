"""What `ezigen adapters compare` prints: by how much, and where, one evaluated adapter scores higher than another."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from flows.terminal import out, print_table
from tasks.reports.wording import COSTS, SCORE_NAMES, plural, score_name

if TYPE_CHECKING:
    from ezigen.metrics.statistics import Interval
    from tasks.evaluation.comparison import Differences

MAX_SUBJECTS = 5
"""Subjects named at either end."""
_BY_SUBJECT = ("dino_sub", "dino", "clip_t")


def print_differences(new: str, old: str, found: "Sequence[Differences]") -> None:
    """A table of differences for every variant, then the subjects that gained least and most in the last one."""
    from tasks.evaluation.paper import TABLES

    titles = {variant.name: variant.title for table in TABLES.values() for variant in table.variants}
    for one in found:
        means = one.means([name for name in SCORE_NAMES if name not in COSTS])
        title = titles.get(one.variant, one.variant)
        out.print(f"\n[bold]{escape(title)}[/], {plural(len(one.images), 'image')}: {escape(new)} - {escape(old)}")
        print_table(
            ("", "difference", ""), [(score_name(name), mean.signed(), mean.direction) for name, mean in means.items()]
        )
    last = found[-1]
    for measure in _BY_SUBJECT:
        by_subject = last.by_subject(measure)
        if len(by_subject) > 1:
            print_subjects(measure, by_subject)


def print_subjects(measure: str, by_subject: "Mapping[str, Interval]") -> None:
    """The subjects that gained least and those that gained most."""
    named = list(by_subject.items())
    ends = named if len(named) <= 2 * MAX_SUBJECTS else [*named[:MAX_SUBJECTS], *named[-MAX_SUBJECTS:]]
    out.print(f"\n[bold]{escape(score_name(measure))} by subject[/], {len(ends)} of {len(named)}, the least gain first")
    print_table(("", "difference"), [(subject, f"{mean.mean:+.3f}") for subject, mean in ends])
