"""Which training pairs are built, from what, and how their pictures are cut."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ezigen.config.base import Config


class PairInputs(Config):
    """The data sets, the output folder, and how many pairs are wanted of each source."""

    output_uri: str = Field(
        min_length=1, description="Folder or s3:// prefix for the pairs and their card. Running again continues there."
    )
    coco_uri: str = Field(
        default="",
        description="Folder of COCO 2014: train2014/ and val2014/ beside annotations/. Empty: no pairs of COCO.",
    )
    coco_split: Literal["train", "val", "both"] = Field(default="train", description="Which pictures of COCO are used.")
    youtube_vis_uri: str = Field(
        default="",
        description="Folder of YouTube-VIS: instances.json (or train.json) beside JPEGImages/, or meta.json beside "
        "JPEGImages/ and Annotations/. Empty: no pairs of YouTube-VIS.",
    )
    num_coco_pairs: int = Field(default=100_000, ge=0, le=100_000_000, description="Pairs wanted of COCO.")
    num_youtube_vis_pairs: int = Field(default=100_000, ge=0, le=100_000_000, description="Pairs wanted of videos.")
    max_refused_share: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="The run ends as failed when refusals leave more than this share of the wanted pairs missing (of "
        "all candidates, where there are fewer), after building all others.",
    )
    if_busy: Literal["refuse", "wait"] = Field(
        default="refuse",
        description="What to do when another run holds the output: refuse at once, or wait for it to end.",
    )
    max_picture_side_px: int = Field(
        default=16_384, ge=64, description="Pictures with a longer side are refused before decoding."
    )
    max_picture_pixels: int = Field(
        default=100_000_000, ge=4096, description="Pictures with more pixels are refused before decoding."
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


class CocoSelection(Config):
    """Which objects of a COCO picture become subjects (Section 4.1 of the paper, and the released code)."""

    min_area_px: float = Field(
        default=1000.0, ge=1.0, description="Smallest area of an object, in pixels of the picture."
    )
    max_objects: int = Field(
        default=4,
        ge=1,
        le=100,
        description="Subjects per picture, largest first; of a picture with more objects than this only the larger "
        "half are candidates.",
    )


class VideoSelection(Config):
    """Which two frames of a video become a pair, and how they are cut (Section 4.1; the filters are AnyDoor's)."""

    min_distance_share: float = Field(
        default=0.125,
        ge=0.0,
        lt=1.0,
        description="Least distance of the two frames, as a share of the object's frames.",
    )
    min_connected_share: float = Field(
        default=0.9, ge=0.0, le=1.0, description="Least share of the mask that its largest connected part has."
    )
    min_mask_share: float = Field(
        default=0.01, ge=0.0, le=1.0, description="Least share of the frame that the mask has."
    )
    max_mask_share: float = Field(default=0.64, gt=0.0, le=1.0, description="Greatest share of the frame that it has.")
    min_subject_box_share: float = Field(
        default=0.10,
        ge=0.0,
        le=1.0,
        description="Least width and height of the subject's box, as a share of the frame's.",
    )
    max_target_box_share: float = Field(
        default=0.80, gt=0.0, le=1.0, description="Greatest width and height of the target's box, likewise."
    )
    min_subject_enlarge: float = Field(
        default=1.1, ge=1.0, le=4.0, description="Least enlargement of the subject's box."
    )
    max_subject_enlarge: float = Field(default=1.4, ge=1.0, le=4.0, description="Greatest enlargement of it.")
    min_target_enlarge: float = Field(
        default=1.3, ge=1.0, le=10.0, description="Least enlargement of the target's box."
    )
    max_target_enlarge: float = Field(default=2.9, ge=1.0, le=10.0, description="Greatest enlargement of it.")
    flip_probability: float = Field(default=0.5, ge=0.0, le=1.0, description="Share of subjects that are mirrored.")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        bounds = ("mask_share", "subject_enlarge", "target_enlarge")
        for name in bounds:
            if getattr(self, f"min_{name}") > getattr(self, f"max_{name}"):
                raise ValueError(f"min_{name} is greater than max_{name}")
        return self


class PairConfig(Config):
    """How pairs are chosen and cut. A changed value makes another set of pairs."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="Decides which candidates are taken and how they are cut.")
    size_px: int = Field(default=512, ge=16, le=2048, description="Side of the subject and target pictures.")
    picture_format: Literal["jpeg", "png"] = Field(
        default="jpeg", description="How pictures are stored; masks are always PNG."
    )
    jpeg_quality: int = Field(default=95, ge=50, le=100, description="Quality of JPEG pictures, without chroma loss.")
    targets: Literal["embed", "reference"] = Field(
        default="embed",
        description="embed stores the target picture in the row; reference stores its location and crop, which needs "
        "a third of the space and the data set beside the pairs.",
    )
    coco_target_fit: Literal["crop", "squash", "pad"] = Field(
        default="crop",
        description="How a whole COCO picture becomes square: the largest square with the subject in it; squashed, as "
        "the released code does; or padded with white.",
    )
    pairs_per_shard: int = Field(
        default=256, ge=1, le=16_384, description="Pairs per stored shard, the unit of work and of retry."
    )
    coco: CocoSelection = Field(default=CocoSelection(), description="Which objects of a COCO picture become subjects.")
    youtube_vis: VideoSelection = Field(
        default=VideoSelection(), description="Which two frames of a video become a pair, and how they are cut."
    )
