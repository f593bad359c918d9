"""Typer commands that take a whole set of options as one object."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar, get_type_hints

from typer import Option

T = TypeVar("T")

MODEL, SAMPLER, CLUSTER, INPUTS = "Model", "Sampler", "Cluster", "Inputs"

Address = Annotated[
    str | None, Option(help='Ray cluster: "local" starts one, HOST:PORT joins one.', rich_help_panel=CLUSTER)
]
Accelerator = Annotated[str | None, Option(help="auto, cpu or gpu.", rich_help_panel=CLUSTER)]
Model = Annotated[
    str | None, Option(help='"mini" (shipped), a folder in diffusers format, or a hub id.', rich_help_panel=MODEL)
]
Adapters = Annotated[str | None, Option(help="Folder or s3:// prefix of published adapters.", rich_help_panel=MODEL)]
Workers = Annotated[
    int | None, Option(help="Ray actors that hold a model; 0 fits the cluster.", rich_help_panel=CLUSTER)
]
Device = Annotated[str | None, Option(help="auto, cpu or cuda.", rich_help_panel=MODEL)]
NetworkDtype = Annotated[str | None, Option(help="auto, fp32, bf16 or fp16.", rich_help_panel=MODEL)]
Wait = Annotated[bool | None, Option("--wait", help="Wait while another run holds the output.", rich_help_panel=INPUTS)]
StorageBlock = Annotated[
    str | None, Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.", rich_help_panel=INPUTS)
]


def with_options(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """A Typer command that takes every field of a dataclass by itself and hands the command one object of it.

    Fields without a default are required; the others say what they are by their annotation.
    """
    hints = get_type_hints(options, include_extras=True)
    listed = fields(options)  # type: ignore[arg-type]

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(options(**values))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {field.name: hints[field.name] for field in listed}
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in listed
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate
