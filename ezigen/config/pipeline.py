"""The whole way from data sets to a published adapter and what it measures, in one root folder."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ezigen.config.base import Config
from ezigen.config.evaluation import EvaluationInputs
from ezigen.config.features import FeatureInputs
from ezigen.config.pairs import PairInputs
from ezigen.config.training import NAME_PATTERN, Alias, TrainingInputs


class PipelineInputs(Config):
    """The data sets, and one folder for everything that is made of them: pairs, features, runs, adapters,
    evaluation.
    """

    root_uri: str = Field(
        min_length=1,
        description="Folder or s3:// prefix: pairs/, features/, runs/, adapters/ and evaluation/ are made in it. "
        "Running again continues there.",
    )
    coco_uri: str = Field(
        default="",
        description="Folder of COCO 2014: train2014/ and val2014/ beside annotations/. Empty: no pairs of COCO.",
    )
    youtube_vis_uri: str = Field(
        default="", description="Folder of YouTube-VIS, in either layout. Empty: no pairs of videos."
    )
    num_coco_pairs: int = Field(default=100_000, ge=0, le=100_000_000, description="Pairs wanted of COCO.")
    num_youtube_vis_pairs: int = Field(default=100_000, ge=0, le=100_000_000, description="Pairs wanted of videos.")
    max_gib: float = Field(
        default=0.0,
        ge=0.0,
        description="A feature store that would become larger is refused before anything of it is written, and one "
        "that turns out larger is not finished; with a larger budget it is. 0 sets no limit.",
    )
    name: str = Field(default="adapter", pattern=NAME_PATTERN, description="Name under which the adapter is published.")
    alias: Alias = Field(
        default="latest",
        pattern=r"^([a-z][a-z0-9._-]{0,62})?$",
        description="Alias that points to the new version in the end; empty: none.",
    )
    promote: Alias = Field(
        default="",
        pattern=r"^([a-z][a-z0-9._-]{0,62})?$",
        description="Alias that the new version gets in the end if it is measured to be no worse than the one that has "
        "it, within evaluation.margins. Empty: none.",
    )
    initial_adapter: str = Field(default="", description="Adapter to start from; as in train_adapter.")
    if_busy: Literal["refuse", "wait"] = Field(
        default="refuse", description="What to do when another run holds one of the outputs: refuse at once, or wait."
    )
    storage_block: str = Field(
        default="",
        description="Name of a Prefect block of type ezigen-s3 with the endpoint and keys of an S3 store; empty: "
        "the standard AWS variables.",
    )

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if not self.coco_uri and not self.youtube_vis_uri:
            raise ValueError("name at least one data set: coco_uri or youtube_vis_uri")
        return self

    def place(self, folder: str) -> str:
        """The location of a folder below the root."""
        return f"{self.root_uri.rstrip('/')}/{folder}"

    def pair_inputs(self) -> PairInputs:
        """What build_pairs gets."""
        return PairInputs(
            output_uri=self.place("pairs"),
            coco_uri=self.coco_uri,
            youtube_vis_uri=self.youtube_vis_uri,
            num_coco_pairs=self.num_coco_pairs,
            num_youtube_vis_pairs=self.num_youtube_vis_pairs,
            if_busy=self.if_busy,
            storage_block=self.storage_block,
        )

    def feature_inputs(self) -> FeatureInputs:
        """What precompute_features gets."""
        return FeatureInputs(
            pairs_uri=self.place("pairs"),
            output_uri=self.place("features"),
            max_gib=self.max_gib,
            if_busy=self.if_busy,
            storage_block=self.storage_block,
        )

    def training_inputs(self) -> TrainingInputs:
        """What train_adapter gets."""
        return TrainingInputs(
            features_uri=self.place("features"),
            output_uri=self.place("runs"),
            adapters_uri=self.place("adapters"),
            pairs_uri=self.place("pairs"),
            name=self.name,
            alias=self.alias,
            initial_adapter=self.initial_adapter,
            if_busy=self.if_busy,
            storage_block=self.storage_block,
        )

    def evaluation_inputs(self, adapter: str) -> EvaluationInputs:
        """What evaluate_adapter gets; `adapter` is the version that training published."""
        return EvaluationInputs(
            adapter=adapter,
            adapters_uri=self.place("adapters"),
            output_uri=self.place("evaluation"),
            if_busy=self.if_busy,
            storage_block=self.storage_block,
        )
