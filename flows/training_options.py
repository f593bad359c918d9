"""The options that `ezigen train` and `ezigen plan train` share, and the parameters they stand for."""

from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from flows.option_sets import CLUSTER, INPUTS, Accelerator, Address, Device, Model, StorageBlock, Wait
from flows.parameters import TrainingParameters, build_training_parameters

TRAINING, MONITORING = "Training", "Monitoring"

Name = Annotated[str | None, Option(help="Name under which versions are published.", rich_help_panel=INPUTS)]
Alias = Annotated[
    str | None, Option(help='Alias that is moved to the new version, "latest" unless given.', rich_help_panel=INPUTS)
]
From = Annotated[
    str | None,
    Option(
        "--from",
        metavar="ADAPTER",
        help="Adapter to start from: a folder, NAME@ALIAS, NAME@VERSION, or auto (the shipped one).",
        rich_help_panel=TRAINING,
    ),
]
Preset = Annotated[str, Option(help="recommended, paper, paper-xl or released.", rich_help_panel=TRAINING)]
Steps = Annotated[int | None, Option(help="Optimizer steps, instead of epochs.", rich_help_panel=TRAINING)]
Epochs = Annotated[float | None, Option(help="Passes over the training samples.", rich_help_panel=TRAINING)]
BatchSize = Annotated[
    int | None, Option(help="Samples per optimizer step, over all workers together.", rich_help_panel=TRAINING)
]
LearningRate = Annotated[float | None, Option(help="Learning rate after the warm-up.", rich_help_panel=TRAINING)]
Seed = Annotated[int | None, Option(help="Decides the order of samples and all noise.", rich_help_panel=TRAINING)]
Workers = Annotated[
    int | None, Option(help="Workers, each with its share of every batch; 0 fits the cluster.", rich_help_panel=CLUSTER)
]
MinWorkers = Annotated[
    int | None, Option(help="Go on with as few as this when nodes are lost.", rich_help_panel=CLUSTER)
]


@dataclass(frozen=True)
class TrainingOptions:
    """What stands on the command line. None means "not given": then the preset's or the default value holds."""

    features: Annotated[str, Argument(help="Feature store: folder or s3:// prefix that ezigen features wrote.")]
    output: Annotated[str, Argument(help="Folder or s3:// prefix of runs; each configuration has its own in it.")]
    name: Name = None
    adapters: Annotated[
        str | None,
        Option(help="Folder or s3:// prefix of published adapters (adapters unless given).", rich_help_panel=INPUTS),
    ] = None
    alias: Alias = None
    pairs: Annotated[
        str | None,
        Option(help="The pairs, where the feature store's record is no longer right.", rich_help_panel=INPUTS),
    ] = None
    wait: Wait = None
    storage_block: StorageBlock = None
    preset: Preset = "recommended"
    steps: Steps = None
    epochs: Epochs = None
    batch_size: BatchSize = None
    lr: LearningRate = None
    seed: Seed = None
    initial: From = None
    precision: Annotated[str | None, Option(help="auto, fp32 or bf16.", rich_help_panel=TRAINING)] = None
    checkpoint_every: Annotated[int | None, Option(help="Steps between checkpoints.", rich_help_panel=MONITORING)] = (
        None
    )
    validate_every: Annotated[
        int | None, Option(help="Steps between measurements; 0: only in the end.", rich_help_panel=MONITORING)
    ] = None
    model: Model = None
    device: Device = None
    address: Address = None
    workers: Workers = None
    min_workers: MinWorkers = None
    accelerator: Accelerator = None
    assignments: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="GROUP.FIELD=VALUE",
            help="Any other setting of inputs, model, training, monitoring or cluster, as in "
            "training.optimizer.warmup_steps=100; repeat it.",
        ),
    ] = None

    def parameters(self) -> TrainingParameters:
        """The flow's parameters. Raises ConfigurationError or pydantic's ValidationError."""
        return build_training_parameters(
            inputs={
                "features_uri": self.features,
                "output_uri": self.output,
                "adapters_uri": self.adapters,
                "name": self.name,
                "alias": self.alias,
                "pairs_uri": self.pairs,
                "initial_adapter": self.initial,
                "if_busy": "wait" if self.wait else None,
                "storage_block": self.storage_block,
            },
            model={"model": self.model, "device": self.device},
            training={
                # The one that is given wins over the preset's other one.
                "num_steps": 0 if self.epochs is not None and self.steps is None else self.steps,
                "num_epochs": self.epochs,
                "batch_size": self.batch_size,
                "optimizer.lr": self.lr,
                "seed": self.seed,
                "precision": self.precision,
            },
            monitoring={"checkpoint_every": self.checkpoint_every, "validate_every": self.validate_every},
            cluster={
                "address": self.address,
                "num_workers": self.workers,
                "min_workers": self.min_workers,
                "accelerator": self.accelerator,
            },
            preset=self.preset,
            assignments=self.assignments or (),
        )
