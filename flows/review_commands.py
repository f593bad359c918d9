"""`ezigen review`: images of a run are approved or rejected before they are published. Starts no server and no Ray."""

import math
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape

from ezigen.config import ConfigurationError
from flows.exits import plain_errors
from flows.outputs import open_output
from flows.study_commands import print_left_out
from flows.terminal import out
from tasks.reports.wording import format_number, plural

Output = Annotated[str, typer.Argument(help="Output folder or s3:// prefix of a run.")]
StorageBlock = Annotated[str, typer.Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.")]

review_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Approve or reject the images of a run before they are published.\n\n"
    "[bold]create[/] writes a page, complete in itself; [bold]apply[/] stores in the output what reviewers exported "
    "from it. [bold]ezigen results OUTPUT --approved[/] lists what may go out.",
)


@review_app.command("create")
def create_review(
    output: Output,
    to: Annotated[str, typer.Option(metavar="FILE.html", help="Where the page goes; OUTPUT/review.html.")] = "",
    max_items: Annotated[int, typer.Option(min=1, help="At most so many images, the worst by score.")] = 500,
    below: Annotated[
        list[str] | None,
        typer.Option(metavar="SCORE=VALUE", help="Only images with this score below a value, such as dino=0.5."),
    ] = None,
    unreviewed: Annotated[
        bool, typer.Option("--unreviewed", help="Only images about which nothing is decided yet.")
    ] = False,
    storage_block: StorageBlock = "",
) -> None:
    """Write a page with the images of a run, the worst first, to approve or reject them by keyboard or pointer."""
    with plain_errors():
        from tasks.reviews import ReviewRequest, write_review

        request = ReviewRequest(max_items, parse_bounds(below or []), unreviewed)
        review = write_review(open_output(output, storage_block), request, to)
        out.print(f"page: {escape(review.page_uri)}")
        out.print(
            f"{plural(review.num_items, 'image')} of {format_number(review.num_selected)} that fit, at most "
            f"{review.side_px} px, {review.page_bytes / 1e6:.1f} MB"
        )
        print_left_out(review.left_out, "image")


@review_app.command("apply")
def apply_reviews(
    output: Output,
    decisions: Annotated[list[str], typer.Argument(help="What reviewers exported.")],
    storage_block: StorageBlock = "",
) -> None:
    """Store decisions in the output. Refused as a whole if an image is not the one that was looked at."""
    with plain_errors():
        from tasks.reviews import apply_decisions

        opened = open_output(output, storage_block)
        for uri in decisions:
            applied = apply_decisions(opened, uri)
            overruled = (
                f", {format_number(applied.num_overruled)} overruled by later ones" if applied.num_overruled else ""
            )
            out.print(
                f"{escape(applied.reviewer)}: {format_number(applied.num_approved)} approved, "
                f"{format_number(applied.num_rejected)} rejected{overruled}: {escape(applied.uri)}"
            )


def parse_bounds(assignments: Sequence[str]) -> dict[str, float]:
    """SCORE=VALUE by score. Raises ConfigurationError for anything else, and a repeated score."""
    bounds: dict[str, float] = {}
    for text in assignments:
        name, _, value = (part.strip() for part in text.partition("="))
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if not name or not math.isfinite(bound) or name in bounds:
            raise ConfigurationError(f"--below {text!r}: write SCORE=VALUE, such as dino=0.5, once for each score.")
        bounds[name] = bound
    return bounds
