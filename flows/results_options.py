"""The options of `ezigen results`."""

from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from flows.results_listing import Format, Selection, Status, one_state

_REVIEW = "Review"


@dataclass(frozen=True)
class ResultsOptions:
    """What stands on the command line."""

    output: Annotated[str, Argument(help="Output folder or s3:// prefix of a run.")]
    failed: Annotated[bool, Option("--failed", help="Only failed rows; the same as --status failed.")] = False
    status: Annotated[Status | None, Option(help="Only rows of this status.")] = None
    code: Annotated[str | None, Option(help="Only rows that failed with this error code.")] = None
    form: Annotated[Format, Option("--format", help="table for people; csv and jsonl list every column.")] = "table"
    approved: Annotated[
        bool, Option("--approved", help="Only images that a review approved.", rich_help_panel=_REVIEW)
    ] = False
    rejected: Annotated[
        bool, Option("--rejected", help="Only images that a review rejected.", rich_help_panel=_REVIEW)
    ] = False
    unreviewed: Annotated[
        bool, Option("--unreviewed", help="Only images about which nothing is decided.", rich_help_panel=_REVIEW)
    ] = False
    storage_block: Annotated[str, Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.")] = ""

    def selection(self) -> Selection:
        """Which rows are wanted. Raises ConfigurationError for two states of review."""
        state = one_state(approved=self.approved, rejected=self.rejected, unreviewed=self.unreviewed)
        return Selection("failed" if self.failed else self.status, self.code, state)
