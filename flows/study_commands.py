"""`ezigen study`: a blind preference study as one page, and what its answers say. Starts no server and no Ray."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ezigen.config import ConfigurationError
from flows.exits import plain_errors
from flows.option_sets import with_options
from flows.plan_commands import load_options
from flows.study_options import StudyOptions
from flows.terminal import err, out, print_table
from tasks.reports.spreadsheet import write_csv
from tasks.reports.wording import format_number, plural

if TYPE_CHECKING:
    from tasks.storage import Locations
    from tasks.studies import StudyResults
    from tasks.studies.results import Share

NOBODY = "no difference"
_MAX_LEFT_OUT = 5
_LARGE_PAGE_BYTES = 60_000_000

study_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Blind preference studies: which of several methods people prefer.\n\n"
    "[bold]create[/] writes a page for raters, complete in itself, and beside it the key that says which image is "
    "whose; [bold]results[/] reads the key and the answers that raters send back.",
)


@study_app.command("create")
@with_options(StudyOptions)
def create_study(options: StudyOptions) -> None:
    """Write a page for raters. Keep its key to yourself: the page without it does not say who made which image."""
    with plain_errors():
        from tasks.studies import StudyRequest, parse_questions, write_study

        request = StudyRequest(
            sets=parse_sets(options.sets),
            questions=parse_questions(options.questions or []),
            num_cases=options.cases,
            seed=options.seed,
            catalog_uri=options.catalog,
            subjects_uri=options.subjects,
            side_px=options.side,
        )
        study = write_study(options.output, request, open_locations(options.storage_block))
        out.print(f"page: {escape(study.page_uri)}")
        out.print(f"key:  {escape(study.key_uri)} (not for raters)")
        out.print(
            f"{plural(study.num_cases, 'case')} of {format_number(study.num_common)} that all sets have, images of at "
            f"most {study.side_px} px, {study.page_bytes / 1e6:.1f} MB"
        )
        if study.page_bytes > _LARGE_PAGE_BYTES:
            err.print("That is a large page for a phone; a smaller --side or fewer --cases make it smaller.")
        print_left_out(study.left_out)


@study_app.command("results")
def show_results(
    key: Annotated[str, typer.Argument(help="The .key.json that was written beside the page.")],
    answers: Annotated[list[str], typer.Argument(help="What raters exported, one file each.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="The shares as CSV.")] = False,
    storage_block: Annotated[str, typer.Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.")] = "",
) -> None:
    """Print how often each method was chosen, with 95 % intervals over cases, and how far raters agree."""
    with plain_errors():
        from tasks.studies import read_results

        if as_json and as_csv:
            raise ConfigurationError("--json and --csv are two forms of one output; choose one.")
        results = read_results(key, answers, open_locations(storage_block))
        if as_json:
            sys.stdout.write(json.dumps(results.to_json(), ensure_ascii=False, indent=1) + "\n")
        elif as_csv:
            _write_csv(results)
        else:
            _print_results(results)


def parse_sets(assignments: Sequence[str]) -> dict[str, str]:
    """NAME=LOCATION by name, in the given order. Raises ConfigurationError for anything else, and a repeated name."""
    sets: dict[str, str] = {}
    for text in assignments:
        name, mark, uri = (part.strip() for part in text.partition("="))
        if not mark or not name or not uri or not name.isprintable() or name == NOBODY:
            raise ConfigurationError(f"--set {text!r}: write NAME=LOCATION, such as --set ours=out/.")
        if name in sets:
            raise ConfigurationError(f"--set {name} is given twice; name each method once.")
        sets[name] = uri
    return sets


def open_locations(storage_block: str) -> "Locations":
    """Locations with the keys of a Prefect block, if one is named."""
    from tasks.storage import Locations

    return Locations(storage_options=load_options(storage_block))


def print_left_out(left_out: Mapping[str, str], noun: str = "case") -> None:
    """What a page does not show, and why."""
    if not left_out:
        return
    err.print(f"[yellow]{plural(len(left_out), noun)} left out[/]")
    for name, reason in list(left_out.items())[:_MAX_LEFT_OUT]:
        err.print(f"  {escape(name)}: {escape(reason)}")
    if len(left_out) > _MAX_LEFT_OUT:
        err.print(f"  and {format_number(len(left_out) - _MAX_LEFT_OUT)} more")


def _print_results(results: "StudyResults") -> None:
    out.print(f"[bold]{plural(results.num_cases, 'case')}, {plural(len(results.raters), 'rater')}[/]")
    print_table(("question", "method", "share", "95 % interval", "answers"), map(_describe_share, results.shares))
    out.print("\n[bold]agreement[/] (Fleiss' kappa: 1 full, 0 chance)")
    kappas = ((name, "–" if kappa is None else f"{kappa:.3f}") for name, kappa in results.agreement.items())
    print_table(("", ""), kappas)
    if results.num_missing:
        by_rater = ", ".join(f"{rater} {format_number(count)}" for rater, count in results.missing.items() if count)
        out.print(
            f"\n[yellow]{format_number(results.num_missing)} of {plural(results.num_expected, 'answer')} missing[/]: "
            f"{escape(by_rater)}"
        )


def _describe_share(share: "Share") -> tuple[str, ...]:
    interval = share.interval
    ends = f"{interval.low:.1%} to {interval.high:.1%}" if math.isfinite(interval.low) else "one case only"
    return share.question, share.method or NOBODY, f"{interval.mean:.1%}", ends, format_number(interval.count)


def _write_csv(results: "StudyResults") -> None:
    rows = [share.to_json() for share in results.shares]
    named = ({**row, "method": row["method"] or NOBODY} for row in rows)
    write_csv(sys.stdout, [list(rows[0]), *(row.values() for row in named)])
