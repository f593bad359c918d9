"""The options of `ezigen pipeline`, and the parameters they stand for."""

from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from ezigen.config import ConfigurationError
from flows.option_sets import CLUSTER, INPUTS, Accelerator, Address, Device, Model, StorageBlock, Wait
from flows.parameters import PipelineParameters, build_pipeline_parameters
from flows.training_options import (
    Alias,
    BatchSize,
    Epochs,
    From,
    LearningRate,
    Name,
    Preset,
    Seed,
    Steps,
)


@dataclass(frozen=True)
class PipelineOptions:
    """What stands on the command line. None means "not given": then the preset's or the default value holds."""

    root: Annotated[str, Argument(help="Folder or s3:// prefix for pairs, features, runs, adapters and evaluation.")]
    coco: Annotated[
        str | None,
        Option(metavar="FOLDER", help="COCO 2014: train2014/, val2014/ beside annotations/.", rich_help_panel=INPUTS),
    ] = None
    youtube_vis: Annotated[
        str | None, Option(metavar="FOLDER", help="YouTube-VIS, in either layout.", rich_help_panel=INPUTS)
    ] = None
    num_coco: Annotated[
        int | None, Option(help="Pairs wanted of COCO (100000 unless given).", rich_help_panel=INPUTS)
    ] = None
    num_youtube_vis: Annotated[
        int | None, Option(help="Pairs wanted of videos (100000 unless given).", rich_help_panel=INPUTS)
    ] = None
    name: Name = None
    alias: Alias = None
    promote: Annotated[
        str | None,
        Option(
            metavar="ALIAS",
            help="Alias that the new version gets if it is measured to be no worse than the one that has it.",
            rich_help_panel=INPUTS,
        ),
    ] = None
    max_gib: Annotated[
        float | None,
        Option(help="Largest store; a larger one is refused, or not finished.", rich_help_panel=INPUTS),
    ] = None
    wait: Wait = None
    storage_block: StorageBlock = None
    size: Annotated[
        int | None, Option(help="Side of the pictures in px; the model's unless given.", rich_help_panel="Pairs")
    ] = None
    policy: Annotated[
        str | None,
        Option(
            help="features stores every subject's tokens; latents leaves computing them to training.",
            rich_help_panel="Features",
        ),
    ] = None
    preset: Preset = "recommended"
    steps: Steps = None
    epochs: Epochs = None
    batch_size: BatchSize = None
    lr: LearningRate = None
    seed: Seed = None
    initial: From = None
    model: Model = None
    device: Device = None
    address: Address = None
    workers: Annotated[
        int | None, Option(help="Workers of every stage; 0 fits the cluster.", rich_help_panel=CLUSTER)
    ] = None
    accelerator: Accelerator = None
    assignments: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="GROUP.FIELD=VALUE",
            help="Any other setting of inputs, model, pairs, features, training, monitoring, evaluation or cluster; "
            "repeat it.",
        ),
    ] = None

    def parameters(self) -> PipelineParameters:
        """The flow's parameters. Raises ConfigurationError or pydantic's ValidationError."""
        return build_pipeline_parameters(
            inputs={
                "root_uri": self.root,
                "coco_uri": self.coco,
                "youtube_vis_uri": self.youtube_vis,
                "num_coco_pairs": self.num_coco,
                "num_youtube_vis_pairs": self.num_youtube_vis,
                "max_gib": self.max_gib,
                "name": self.name,
                "alias": self.alias,
                "promote": self.promote,
                "initial_adapter": self.initial,
                "if_busy": "wait" if self.wait else None,
                "storage_block": self.storage_block,
            },
            model={"model": self.model, "device": self.device},
            pairs={"size_px": self.size or self._model_size()},
            features={"policy": self.policy},
            training={
                "num_steps": 0 if self.epochs is not None and self.steps is None else self.steps,
                "num_epochs": self.epochs,
                "batch_size": self.batch_size,
                "optimizer.lr": self.lr,
                "seed": self.seed,
            },
            cluster={"address": self.address, "num_workers": self.workers, "accelerator": self.accelerator},
            preset=self.preset,
            assignments=self.assignments or (),
        )

    def _model_size(self) -> int | None:
        """The picture size of the model that is named by option; None, the default, where it cannot be read here."""
        from flows.planning import read_image_size

        try:
            return read_image_size(self.model or "mini")
        except (ConfigurationError, OSError):
            # The run says what is wrong with the model.
            return None
