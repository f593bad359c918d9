"""How commands end: exit codes, and errors in words that a person can act upon."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError

from ezigen.config import ConfigurationError
from flows.parameters import describe_invalid
from flows.terminal import err, print_error

EXIT_FAILED, EXIT_WRONG, EXIT_BUSY, EXIT_INTERRUPTED = 1, 2, 3, 130


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
