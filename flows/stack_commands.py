"""`ezigen up` and `ezigen down`: a whole stack on this machine, for development, trials and tests."""

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ezigen.config import ConfigurationError
from flows.exits import EXIT_FAILED, plain_errors
from flows.terminal import err, out, print_error, print_table

if TYPE_CHECKING:
    from flows.stack.settings import Database, Stack

DEFAULT_FOLDER = Path("build/stack")
DOWN_TIMEOUT_S = 240.0

Folder = Annotated[Path, typer.Argument(help="Where its settings, data and logs are.")]


def up(
    folder: Folder = DEFAULT_FOLDER,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=16, help="Ray nodes that compute, of one core each; of a new stack 2.")
    ] = None,
    database: Annotated[
        Literal["auto", "postgresql", "sqlite"], typer.Option(help="Behind Prefect; auto: PostgreSQL if installed.")
    ] = "auto",
    try_it: Annotated[
        bool, typer.Option("--try", help="Then run a small catalog by a schedule and check what it leaves.")
    ] = False,
) -> None:
    """Start Prefect (server, database, worker), Ray, S3 and Prometheus on this machine; what runs already stays."""
    with plain_errors():
        code = _start(folder, nodes, None if database == "auto" else database, try_it=try_it)
    raise typer.Exit(code)


def down(
    folder: Folder = DEFAULT_FOLDER,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the folder, too: images, database, logs.")] = False,
) -> None:
    """Stop what `ezigen up` started: runs store what they have, and no process is left."""
    with plain_errors():
        from flows.stack.settings import Stack
        from flows.stack.supervisor import Supervisor

        stack = Stack.load(folder)
        if stack is None:
            raise ConfigurationError(f"{folder} holds no stack (stack.json); name the folder of `ezigen up`.")
        err.print("stopping; runs in progress store what is done")
        Supervisor(stack).shut_down(DOWN_TIMEOUT_S)
        if delete:
            shutil.rmtree(stack.folder)
        out.print(f"stopped{', and deleted' if delete else ''}: {stack.folder}")


def _start(folder: Path, nodes: int | None, database: "Database | None", *, try_it: bool) -> int:
    from flows.stack.parts import list_parts
    from flows.stack.settings import DEFAULT_NODES, Stack
    from flows.stack.start import start_stack
    from flows.stack.supervisor import PartFailedError

    stack = Stack.load(folder) or Stack.make(folder, nodes or DEFAULT_NODES, database)
    if nodes not in (None, stack.num_nodes) or database not in (None, stack.database):
        raise ConfigurationError(
            f"{folder} holds a stack of {stack.num_nodes} nodes on {stack.database}; stop it with "
            f"`ezigen down {folder} --delete` first, or name another folder."
        )
    try:
        for name, seconds in start_stack(stack):
            err.print(f"{name:15} there after {seconds:.1f} s")
    except PartFailedError as error:
        print_error(f"{error}\nThe other parts go on; `ezigen down {folder}` stops them.")
        return EXIT_FAILED
    parts = list_parts(stack)
    print_table(("part", "where"), [(part.name, part.about) for part in parts])
    place = shlex.quote(str(stack.folder))
    out.print(f"\nsource {place}/environment\nprefect deployment run personalize_catalog/nightly --watch")
    out.print(f"logs: {place}/logs; stop: ezigen down {place}")
    return _try(stack) if try_it else 0


def _try(stack: "Stack") -> int:
    from flows.stack.trial import try_stack

    out.print()
    all_good = True
    for check in try_stack(stack, err.print):
        mark = "[green]good[/]" if check.is_good else "[bold red]bad [/]"
        out.print(f"{mark}  {check.name}: {check.found}")
        all_good = all_good and check.is_good
    return 0 if all_good else EXIT_FAILED
