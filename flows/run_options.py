"""The options that `ezigen personalize` and `ezigen plan` share, and the parameters they stand for."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, get_type_hints

from typer import Argument, Option

from flows.parameters import CatalogParameters, build_parameters

_MODEL, _SAMPLER, _CLUSTER, _INPUTS = "Model", "Sampler", "Cluster", "Inputs"


@dataclass(frozen=True)
class RunOptions:
    """What stands on the command line. None means "not given": then the configuration's own default holds."""

    catalog: Annotated[str, Argument(help="Catalog of products: .csv, .jsonl or .parquet, a file or s3://.")]
    output: Annotated[str, Argument(help="Folder or s3:// prefix for images, results and the report.")]
    model: Annotated[
        str | None, Option(help='"mini" (shipped), a folder in diffusers format, or a hub id.', rich_help_panel=_MODEL)
    ] = None
    adapter: Annotated[
        str | None, Option(help='"auto", a folder, the authors\' checkpoint, or "none".', rich_help_panel=_MODEL)
    ] = None
    image_encoder: Annotated[
        str | None, Option(help="The DINOv2 that decides when loops stop.", rich_help_panel=_MODEL)
    ] = None
    device: Annotated[str | None, Option(help="auto, cpu or cuda.", rich_help_panel=_MODEL)] = None
    dtype: Annotated[str | None, Option(help="auto, fp32, bf16 or fp16.", rich_help_panel=_MODEL)] = None
    preset: Annotated[
        str, Option(help="auto, embedded, paper or released; auto fits the model.", rich_help_panel=_SAMPLER)
    ] = "auto"
    mode: Annotated[
        str | None, Option(help="iterative, decoupled, full_injection or text_only.", rich_help_panel=_SAMPLER)
    ] = None
    steps: Annotated[int | None, Option(help="Denoising steps.", rich_help_panel=_SAMPLER)] = None
    guidance: Annotated[float | None, Option(help="Classifier-free guidance.", rich_help_panel=_SAMPLER)] = None
    solver: Annotated[str | None, Option(help="ddim, ddpm or dpmpp_2m.", rich_help_panel=_SAMPLER)] = None
    address: Annotated[
        str | None, Option(help='Ray cluster: "local" starts one, HOST:PORT joins one.', rich_help_panel=_CLUSTER)
    ] = None
    workers: Annotated[
        int | None, Option(help="Ray actors that hold a model; 0 fits the cluster.", rich_help_panel=_CLUSTER)
    ] = None
    batch_size: Annotated[
        int | None, Option(help="Items that a worker denoises together.", rich_help_panel=_CLUSTER)
    ] = None
    accelerator: Annotated[str | None, Option(help="auto, cpu or gpu.", rich_help_panel=_CLUSTER)] = None
    allow_root: Annotated[
        list[str] | None,
        Option(help="Folder or s3:// prefix that rows may read from; repeat it.", rich_help_panel=_INPUTS),
    ] = None
    retry_failed: Annotated[
        bool | None, Option("--retry-failed", help="Run failed items again.", rich_help_panel=_INPUTS)
    ] = None
    limit: Annotated[int | None, Option(help="Do at most so many of the missing items.", rich_help_panel=_INPUTS)] = (
        None
    )
    max_failed_share: Annotated[
        float | None, Option(help="More failures than this share end the run as failed.", rich_help_panel=_INPUTS)
    ] = None
    wait: Annotated[
        bool | None, Option("--wait", help="Wait while another run holds the output.", rich_help_panel=_INPUTS)
    ] = None
    storage_block: Annotated[
        str | None, Option(help="Prefect block ezigen-s3/NAME with endpoint and keys.", rich_help_panel=_INPUTS)
    ] = None
    assignments: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="GROUP.FIELD=VALUE",
            help="Any other setting, as in sampler.loops.max_loops=4; repeat it.",
        ),
    ] = None

    def parameters(self) -> CatalogParameters:
        """The flow's parameters. Raises ConfigurationError or pydantic's ValidationError."""
        return build_parameters(
            inputs={
                "catalog_uri": self.catalog,
                "output_uri": self.output,
                "allowed_roots": self.allow_root or None,
                "retry_failed": self.retry_failed,
                "limit": self.limit,
                "max_failed_share": self.max_failed_share,
                "if_busy": "wait" if self.wait else None,
                "storage_block": self.storage_block,
            },
            model={name: getattr(self, name) for name in ("model", "adapter", "image_encoder", "device", "dtype")},
            sampler={
                "mode": self.mode,
                "num_steps": self.steps,
                "guidance_scale": self.guidance,
                "solver": self.solver,
            },
            cluster={
                "address": self.address,
                "num_workers": self.workers,
                "batch_size": self.batch_size,
                "accelerator": self.accelerator,
            },
            preset=self.preset,
            assignments=self.assignments or (),
        )


def with_run_options(command: Callable[[RunOptions], None]) -> Callable[..., None]:
    """A Typer command that takes every option of RunOptions by itself and hands the command one object."""
    hints = get_type_hints(RunOptions, include_extras=True)

    def run(**values: object) -> None:
        command(RunOptions(**values))  # type: ignore[arg-type]

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {field.name: hints[field.name] for field in fields(RunOptions)}
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.name in ("catalog", "output") else field.default,
            annotation=hints[field.name],
        )
        for field in fields(RunOptions)
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
