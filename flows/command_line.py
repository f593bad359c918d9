"""The command line `ezigen`. Every command that makes something runs the flow of the same name in this process.

Exit codes: 0 done (tolerated failures included), 1 failed, 2 wrong usage or configuration, 3 the output is held by
another run, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from ezigen.config import ConfigurationError
from flows.parameters import describe_invalid
from flows.results_listing import Format, Status
from flows.run_options import RunOptions, with_run_options
from flows.terminal import err, print_error, print_plan

if TYPE_CHECKING:
    from tasks.storage import RunOutput

EXIT_FAILED, EXIT_WRONG, EXIT_BUSY, EXIT_INTERRUPTED = 1, 2, 3, 130

QUIET_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The terminal belongs to the progress bar; the run's page and log files get every record.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}

app = typer.Typer(
    name="ezigen",
    help="Every product of a catalog in new scenes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 the output is held by another run, "
    "130 and 143 stopped.",
)


def main() -> None:
    """The entry point of `ezigen`."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    app()


@app.callback()
def set_up(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log record.")] = False,
) -> None:
    """Options that hold for every command."""
    if debug:
        os.environ["EZIGEN_DEBUG"] = "1"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns what a person can mend into one line and an exit code; --debug shows the traceback instead."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - the last stop: people get one line, --debug the traceback
        debug = bool(os.environ.get("EZIGEN_DEBUG"))
        if debug:
            err.print_exception()
        lines, code = _explain(error, debug=debug)
        for line in lines:
            print_error(line)
        raise typer.Exit(code) from None


def _explain(error: Exception, *, debug: bool) -> tuple[list[str], int]:
    """What to tell a person about an error, and the exit code."""
    from tasks.storage.lease import LeaseHeld

    if isinstance(error, ValidationError):
        return describe_invalid(error), EXIT_WRONG
    if isinstance(error, ConfigurationError):
        return [str(error)], EXIT_WRONG
    if isinstance(error, LeaseHeld):
        return [str(error)], EXIT_BUSY
    more = (
        ""
        if debug
        else "\nWhat is finished is stored; running again continues. ezigen --debug ... shows where it happened."
    )
    return [f"{type(error).__name__}: {error}{more}"], EXIT_FAILED


@app.command()
@with_run_options
def personalize(options: RunOptions) -> None:
    """Make the images of a catalog that are missing in the output: flow [bold]personalize_catalog[/], here and now."""
    with plain_errors():
        parameters = options.parameters()
        from flows.planning import check_early

        check_early(parameters)
        from flows.local_run import run_here

        code = run_here(parameters)
    raise typer.Exit(code)


@app.command()
@with_run_options
def plan(options: RunOptions) -> None:
    """Check every row, count the work and its cost. Reads no picture, loads no model, starts nothing."""
    with plain_errors():
        parameters = options.parameters()
        from flows.planning import make_plan

        made = make_plan(parameters, load_options(parameters.inputs.storage_block))
        print_plan(made)


def load_options(storage_block: str) -> dict[str, Any]:
    """Storage options of a block; Prefect is imported only if there is one to load."""
    if not storage_block:
        return {}
    from flows.storage_block import load_storage_options

    return load_storage_options(storage_block)


def open_output(uri: str, storage_block: str = "") -> "RunOutput":
    """The output folder of a run. Raises ConfigurationError if no run has written there."""
    from tasks.storage import Locations, RunOutput

    output = RunOutput(uri, Locations(storage_options=load_options(storage_block)))
    if output.read_run() is None and not output.list_results():
        raise ConfigurationError(f"{output.root_uri}: no run has written here; check the path of the output.")
    return output


@app.command()
def results(
    output: Annotated[str, typer.Argument(help="Output folder or s3:// prefix of a run.")],
    failed: Annotated[bool, typer.Option("--failed", help="Only failed rows; the same as --status failed.")] = False,
    status: Annotated[Status | None, typer.Option(help="Only rows of this status.")] = None,
    code: Annotated[str | None, typer.Option(help="Only rows that failed with this error code.")] = None,
    form: Annotated[
        Format, typer.Option("--format", help="table for people; csv and jsonl list every column.")
    ] = "table",
    storage_block: Annotated[str, typer.Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.")] = "",
) -> None:
    """List what became of every row."""
    with plain_errors():
        from flows.results_listing import list_results

        list_results(open_output(output, storage_block), status="failed" if failed else status, code=code, form=form)


@app.command()
def doctor(
    address: Annotated[str, typer.Option(help="Ray cluster to reach; local starts one.")] = "local",
    model: Annotated[str, typer.Option(help="Model to look for.")] = "mini",
    storage: Annotated[str | None, typer.Option(help="Folder or s3:// prefix to write to and read from.")] = None,
) -> None:
    """Check what this machine has, what is missing, and say what to do."""
    with plain_errors():
        from flows.doctor import examine

        healthy = examine(address=address, model=model, storage=storage)
    raise typer.Exit(0 if healthy else EXIT_FAILED)


if __name__ == "__main__":
    main()
