"""The options that `ezigen features` and `ezigen plan features` share, and the parameters they stand for."""

from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from flows.option_sets import (
    CLUSTER,
    INPUTS,
    Accelerator,
    Address,
    Device,
    Model,
    StorageBlock,
    Wait,
)
from flows.parameters import FeatureParameters, build_feature_parameters

_FEATURES, _MODEL = "Features", "Model"


@dataclass(frozen=True)
class FeatureOptions:
    """What stands on the command line. None means "not given": then the configuration's own default holds."""

    pairs: Annotated[str, Argument(help="Folder or s3:// prefix that ezigen pairs wrote.")]
    store: Annotated[str, Argument(help="Folder or s3:// prefix for the feature store.")]
    model: Model = None
    device: Device = None
    network_dtype: Annotated[
        str | None, Option(help="Precision of the networks: auto, fp32, bf16 or fp16.", rich_help_panel=_MODEL)
    ] = None
    policy: Annotated[
        str | None,
        Option(
            help="features stores every subject's tokens; latents leaves computing them to training.",
            rich_help_panel=_FEATURES,
        ),
    ] = None
    dtype: Annotated[
        str | None, Option(help="Precision of stored tokens: fp16, bf16 or fp8.", rich_help_panel=_FEATURES)
    ] = None
    tokens: Annotated[
        str | None, Option(help="all, or foreground: those the mask touches.", rich_help_panel=_FEATURES)
    ] = None
    t_sub: Annotated[int | None, Option(help="Timestep at which subjects are encoded.", rich_help_panel=_FEATURES)] = (
        None
    )
    batch_size: Annotated[
        int | None, Option(help="Pictures that a worker encodes together.", rich_help_panel=_FEATURES)
    ] = None
    max_gib: Annotated[
        float | None,
        Option(help="Largest store; a larger one is refused, or not finished.", rich_help_panel=INPUTS),
    ] = None
    verify: Annotated[
        bool | None,
        Option(
            "--verify", help="Compare the checksums of stored shards, make damaged ones again.", rich_help_panel=INPUTS
        ),
    ] = None
    wait: Wait = None
    storage_block: StorageBlock = None
    address: Address = None
    workers: Annotated[
        int | None, Option(help="Workers that hold a model; 0 fits the cluster.", rich_help_panel=CLUSTER)
    ] = None
    accelerator: Accelerator = None
    assignments: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="GROUP.FIELD=VALUE",
            help="Any other setting of inputs, model, features or cluster, as in features.text_embeddings=false; "
            "repeat it.",
        ),
    ] = None

    def parameters(self) -> FeatureParameters:
        """The flow's parameters. Raises ConfigurationError or pydantic's ValidationError."""
        return build_feature_parameters(
            inputs={
                "pairs_uri": self.pairs,
                "output_uri": self.store,
                "max_gib": self.max_gib,
                "verify": self.verify,
                "if_busy": "wait" if self.wait else None,
                "storage_block": self.storage_block,
            },
            model={"model": self.model, "device": self.device, "dtype": self.network_dtype},
            features={name: getattr(self, name) for name in ("policy", "dtype", "tokens", "t_sub", "batch_size")},
            cluster={"address": self.address, "num_workers": self.workers, "accelerator": self.accelerator},
            assignments=self.assignments or (),
        )
