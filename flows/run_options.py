"""The options that `ezigen personalize` and `ezigen plan` share, and the parameters they stand for."""

from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from flows.option_sets import (
    CLUSTER,
    INPUTS,
    MODEL,
    SAMPLER,
    Accelerator,
    Adapters,
    Address,
    Device,
    Model,
    NetworkDtype,
    StorageBlock,
    Wait,
    Workers,
)
from flows.parameters import CatalogParameters, build_parameters


@dataclass(frozen=True)
class RunOptions:
    """What stands on the command line. None means "not given": then the configuration's own default holds."""

    catalog: Annotated[str, Argument(help="Catalog of products: .csv, .jsonl or .parquet, a file or s3://.")]
    output: Annotated[str, Argument(help="Folder or s3:// prefix for images, results and the report.")]
    model: Model = None
    adapter: Annotated[
        str | None,
        Option(
            help='"auto", NAME@ALIAS or NAME@VERSION, a folder or s3:// prefix, the authors\' checkpoint, or "none".',
            rich_help_panel=MODEL,
        ),
    ] = None
    adapters: Adapters = None
    image_encoder: Annotated[
        str | None, Option(help="The DINOv2 that decides when loops stop.", rich_help_panel=MODEL)
    ] = None
    sketch_model: Annotated[
        str | None,
        Option(
            help="Another text-to-image model that draws the scenes (docs/sketches.md): a folder or a hub id.",
            rich_help_panel=MODEL,
        ),
    ] = None
    device: Device = None
    dtype: NetworkDtype = None
    preset: Annotated[
        str, Option(help="auto, embedded, paper or released; auto fits the model.", rich_help_panel=SAMPLER)
    ] = "auto"
    speed: Annotated[
        str | None,
        Option(
            help="exact, balanced or draft: what the preset may save (docs/performance.md). Balanced, unless a preset "
            "is named.",
            rich_help_panel=SAMPLER,
        ),
    ] = None
    mode: Annotated[
        str | None, Option(help="iterative, decoupled, full_injection or text_only.", rich_help_panel=SAMPLER)
    ] = None
    steps: Annotated[int | None, Option(help="Denoising steps.", rich_help_panel=SAMPLER)] = None
    guidance: Annotated[float | None, Option(help="Classifier-free guidance.", rich_help_panel=SAMPLER)] = None
    solver: Annotated[str | None, Option(help="ddim, ddpm or dpmpp_2m.", rich_help_panel=SAMPLER)] = None
    address: Address = None
    workers: Workers = None
    slots: Annotated[int | None, Option(help="Items that a worker denoises together.", rich_help_panel=CLUSTER)] = None
    accelerator: Accelerator = None
    allow_root: Annotated[
        list[str] | None,
        Option(help="Folder or s3:// prefix that rows may read from; repeat it.", rich_help_panel=INPUTS),
    ] = None
    retry_failed: Annotated[
        bool | None, Option("--retry-failed", help="Run failed items again.", rich_help_panel=INPUTS)
    ] = None
    limit: Annotated[int | None, Option(help="Do at most so many of the missing items.", rich_help_panel=INPUTS)] = None
    max_failed_share: Annotated[
        float | None, Option(help="More failures than this share end the run as failed.", rich_help_panel=INPUTS)
    ] = None
    wait: Wait = None
    storage_block: StorageBlock = None
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
            model={
                "adapters_uri": self.adapters,
                "sketch": None if self.sketch_model is None else {"model": self.sketch_model},
                **{name: getattr(self, name) for name in ("model", "adapter", "image_encoder", "device", "dtype")},
            },
            sampler={
                "mode": self.mode,
                "num_steps": self.steps,
                "guidance_scale": self.guidance,
                "solver": self.solver,
            },
            cluster={
                "address": self.address,
                "num_workers": self.workers,
                "num_slots": self.slots,
                "accelerator": self.accelerator,
            },
            preset=self.preset,
            speed=self.speed,
            assignments=self.assignments or (),
        )
