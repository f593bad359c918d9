"""The options that `ezigen pairs` and `ezigen plan pairs` share, and the parameters they stand for."""

from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from flows.option_sets import CLUSTER, INPUTS, Accelerator, Address, StorageBlock, Wait
from flows.parameters import PairParameters, build_pair_parameters

_PAIRS = "Pairs"


@dataclass(frozen=True)
class PairOptions:
    """What stands on the command line. None means "not given": then the configuration's own default holds."""

    output: Annotated[str, Argument(help="Folder or s3:// prefix for the pairs and their card.")]
    coco: Annotated[
        str | None,
        Option(metavar="FOLDER", help="COCO 2014: train2014/, val2014/ beside annotations/.", rich_help_panel=INPUTS),
    ] = None
    youtube_vis: Annotated[
        str | None, Option(metavar="FOLDER", help="YouTube-VIS, in either layout.", rich_help_panel=INPUTS)
    ] = None
    coco_split: Annotated[str | None, Option(help="train, val or both.", rich_help_panel=INPUTS)] = None
    num_coco: Annotated[
        int | None, Option(help="Pairs wanted of COCO (100000 unless given).", rich_help_panel=INPUTS)
    ] = None
    num_youtube_vis: Annotated[
        int | None, Option(help="Pairs wanted of videos (100000 unless given).", rich_help_panel=INPUTS)
    ] = None
    max_refused_share: Annotated[
        float | None, Option(help="More refusals than this share end the run as failed.", rich_help_panel=INPUTS)
    ] = None
    wait: Wait = None
    storage_block: StorageBlock = None
    size: Annotated[int | None, Option(help="Side of the pictures in px.", rich_help_panel=_PAIRS)] = None
    seed: Annotated[
        int | None, Option(help="Decides which candidates are taken and how they are cut.", rich_help_panel=_PAIRS)
    ] = None
    targets: Annotated[
        str | None,
        Option(help="embed the target pictures, or reference them in the data set.", rich_help_panel=_PAIRS),
    ] = None
    picture_format: Annotated[str | None, Option("--format", help="jpeg or png.", rich_help_panel=_PAIRS)] = None
    pairs_per_shard: Annotated[
        int | None, Option(help="Pairs per stored shard, the unit of work and of retry.", rich_help_panel=_PAIRS)
    ] = None
    address: Address = None
    workers: Annotated[int | None, Option(help="Workers at a time; 0 fits the cluster.", rich_help_panel=CLUSTER)] = (
        None
    )
    accelerator: Accelerator = None
    assignments: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="GROUP.FIELD=VALUE",
            help="Any other setting of inputs, pairs or cluster, as in pairs.coco.min_area_px=500; repeat it.",
        ),
    ] = None

    def parameters(self) -> PairParameters:
        """The flow's parameters. Raises ConfigurationError or pydantic's ValidationError."""
        return build_pair_parameters(
            inputs={
                "output_uri": self.output,
                "coco_uri": self.coco,
                "coco_split": self.coco_split,
                "youtube_vis_uri": self.youtube_vis,
                "num_coco_pairs": self.num_coco,
                "num_youtube_vis_pairs": self.num_youtube_vis,
                "max_refused_share": self.max_refused_share,
                "if_busy": "wait" if self.wait else None,
                "storage_block": self.storage_block,
            },
            pairs={
                "size_px": self.size,
                "seed": self.seed,
                "targets": self.targets,
                "picture_format": self.picture_format,
                "pairs_per_shard": self.pairs_per_shard,
            },
            cluster={"address": self.address, "num_workers": self.workers, "accelerator": self.accelerator},
            assignments=self.assignments or (),
        )
