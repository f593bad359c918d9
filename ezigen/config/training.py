"""How the adapters are trained: what changes the result, what does not, and where it is stored."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ezigen.config.base import Config
from ezigen.config.ray import RayConfig
from ezigen.config.sampler import LoopConfig, SamplerConfig, SubjectTimestep

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
"""Names of adapters and of their aliases."""


XL_TEXT_DROPOUT = 0.3
"""The paper's share of empty captions with Stable Diffusion XL (Section 4.1)."""

_OTHER_TEXT_DROPOUT = 0.05


def _check_alias(alias: str) -> str:
    if re.fullmatch(r"v\d+", alias):
        raise ValueError(f"{alias} is what versions are called; choose another word")
    return alias


Alias = Annotated[str, AfterValidator(_check_alias)]
"""A word that points to a version of an adapter; empty: none."""


SubjectEncoderKind = Literal["frozen", "trained", "dino", "clip"]
"""What encodes subjects: the frozen UNet, a trained copy, or an image encoder with projectors (paper, Table 5)."""


class TrainingInputs(Config):
    """What the adapters learn from, and where runs and finished versions are stored."""

    features_uri: str = Field(
        min_length=1, description="Feature store: the folder or s3:// prefix that precompute_features wrote."
    )
    output_uri: str = Field(
        min_length=1,
        description="Folder or s3:// prefix of training runs: checkpoints, logs, sample sheets. Every configuration "
        "has a folder of its own in it; running the same one again continues there.",
    )
    adapters_uri: str = Field(
        default="adapters",
        min_length=1,
        description="Folder or s3:// prefix of published adapters: <name>/<version>/.",
    )
    name: str = Field(default="adapter", pattern=NAME_PATTERN, description="Name under which versions are published.")
    alias: Alias = Field(
        default="latest",
        pattern=r"^([a-z][a-z0-9._-]{0,62})?$",
        description="Alias that points to the new version in the end; empty: none.",
    )
    pairs_uri: str = Field(
        default="",
        description="The pairs that the features were computed of; only sample sheets and scores need them. Empty: the "
        "location that the feature store recorded.",
    )
    initial_adapter: str = Field(
        default="",
        description='Adapter to start from: a folder, NAME@ALIAS or NAME@VERSION, or "auto" (the one shipped with '
        '"mini"). Empty: copies of the self-attention layers (Section 3.1).',
    )
    if_busy: Literal["refuse", "wait"] = Field(
        default="refuse", description="What to do when another process holds the run: refuse at once, or wait."
    )
    storage_block: str = Field(
        default="",
        description="Name of a Prefect block of type ezigen-s3 with the endpoint and keys of an S3 store; empty: "
        "the standard AWS variables.",
    )


class OptimizerConfig(Config):
    """The optimizer and the course of its learning rate."""

    kind: Literal["adam", "adamw", "muon"] = Field(
        default="adamw",
        description="adam (the paper), adamw (the released code), or muon: orthogonalised momentum for matrices with "
        "AdamW for the rest.",
    )
    lr: float = Field(default=1e-4, gt=0.0, le=1.0, description="Learning rate after the warm-up.")
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0, description="Decay of the mean of gradients.")
    beta2: float = Field(default=0.999, ge=0.0, lt=1.0, description="Decay of the mean of squared gradients.")
    weight_decay: float = Field(default=0.01, ge=0.0, le=1.0, description="Decoupled weight decay; adam takes none.")
    epsilon: float = Field(default=1e-8, gt=0.0, le=1.0, description="Term that keeps the division finite.")
    clip_norm: float = Field(default=1.0, ge=0.0, description="Greatest norm of the gradient; 0 does not clip.")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Learning rate after the warm-up: unchanged, or a cosine down to the end."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises from 0.")
    final_lr_share: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Share of the learning rate that is left at the end of the cosine."
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Decay of the running mean of the weights, which is then what is published; 0 keeps none.",
    )


class SourceConfig(Config):
    """How pairs of one data set take part."""

    weight: float = Field(
        default=1.0, ge=0.0, le=1e6, description="Share of the samples, relative to the other source; 0 leaves it out."
    )
    min_timestep: int = Field(default=0, ge=0, le=999, description="Least timestep at which its targets are noised.")
    max_timestep: int = Field(default=999, ge=0, le=999, description="Greatest timestep, included.")

    @model_validator(mode="after")
    def _range_is_in_order(self) -> Self:
        if self.min_timestep > self.max_timestep:
            raise ValueError("min_timestep is greater than max_timestep")
        return self


class TrainingConfig(Config):
    """Everything that decides which weights come out. A changed value is another run."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="Decides the order of samples, all noise and dropouts.")
    num_steps: int = Field(
        default=0, ge=0, le=100_000_000, description="Optimizer steps; 0 derives them from num_epochs."
    )
    num_epochs: float = Field(
        default=1.0, gt=0.0, le=10_000.0, description="Passes over the training samples, where num_steps is 0."
    )
    batch_size: int = Field(
        default=32, ge=1, le=65_536, description="Samples per optimizer step, over all workers together."
    )
    micro_batch_size: int = Field(
        default=0,
        ge=0,
        le=65_536,
        description="Samples that a worker computes at once, the rest is accumulated; 0 takes its whole share.",
    )
    max_subjects: int = Field(
        default=1,
        ge=1,
        le=4,
        description="Subjects per target, at most: those whose pairs share the target picture and the caption.",
    )
    mask_padding: bool = Field(
        default=True,
        description="Leave padded subject slots out of attention. False fills them with a blank picture's features, as "
        "the released code does.",
    )
    subject_dropout: float = Field(
        default=0.2, ge=0.0, le=1.0, description="Share of samples without any subject tokens (Section 4.1)."
    )
    text_dropout: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = Field(
        default=0.0,
        description="Share of samples with an empty caption. auto: 0.3 with Stable Diffusion XL (Section 4.1), else "
        "0.05.",
    )
    features: Literal["auto", "stored", "recompute"] = Field(
        default="auto",
        description="Subject features: stored ones, or computed again from stored latents; auto takes what the store "
        "holds.",
    )
    sample_posterior: bool = Field(
        default=True, description="Draw target latents from the VAE's posterior; False takes its mean."
    )
    extra_residual: bool = Field(
        default=False, description="h2 = h1 + a + u instead of h1 + a, as the released checkpoint was trained."
    )
    adapter_blocks: tuple[str, ...] = Field(
        default=(),
        description="Transformer blocks that carry an adapter: down, mid, up, or patterns of names such as "
        "up_blocks.3.*; none given: all.",
    )
    subject_timestep: Literal["store", "adaptive"] = Field(
        default="store",
        description="Timestep at which subjects are encoded. store: that of the feature store. adaptive: each sample's "
        "own (Table 4), from a store of latents.",
    )
    subject_encoder: SubjectEncoderKind = Field(
        default="frozen",
        description="What encodes the subjects. frozen: the UNet that makes the images (the method). trained: a copy "
        "of it that learns, as in BootPIG. dino, clip: patch tokens of a frozen image encoder, and a trained projector "
        "for each block (Table 5). All but frozen need a store of latents.",
    )
    subject_image_encoder: str = Field(
        default="auto",
        min_length=1,
        description="Image encoder of subject_encoder dino and clip: a folder, a hub id, or auto: the shipped one for "
        '"mini", else facebook/dino-vits16 or openai/clip-vit-base-patch32.',
    )
    min_snr_gamma: float = Field(
        default=0.0, ge=0.0, le=100.0, description="Min-SNR weighting of the loss with this gamma; 0 weighs evenly."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="bf16 computes in bf16 with fp32 weights of the adapters; auto is bf16 on a GPU, fp32 on a CPU.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations again in the backward pass: less memory, a third more time."
    )
    max_loss: float = Field(
        default=0.0,
        ge=0.0,
        description="A step with a greater loss ends the run as diverged, as a loss that is not finite always does; 0 "
        "sets no limit.",
    )
    held_out_share: float = Field(
        default=0.02,
        ge=0.0,
        le=0.5,
        description="Share of pictures and videos whose pairs are not trained on but measured.",
    )
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="The optimizer and its learning rate.")
    coco: SourceConfig = Field(default=SourceConfig(), description="How pairs of COCO take part.")
    youtube_vis: SourceConfig = Field(default=SourceConfig(), description="How pairs of videos take part.")

    LATER: ClassVar[frozenset[str]] = frozenset(
        {"adapter_blocks", "subject_timestep", "subject_encoder", "subject_image_encoder"}
    )

    def for_model(self, *, xl: bool) -> Self:
        """These settings with what `auto` stands for, with Stable Diffusion XL or another model, in its place."""
        if self.text_dropout != "auto":
            return self
        return self.model_copy(update={"text_dropout": XL_TEXT_DROPOUT if xl else _OTHER_TEXT_DROPOUT})

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if not self.coco.weight and not self.youtube_vis.weight:
            raise ValueError("both sources have weight 0; give one of coco.weight, youtube_vis.weight more")
        if self.micro_batch_size > self.batch_size:
            raise ValueError("micro_batch_size is greater than batch_size")
        if self.subject_timestep == "adaptive" and not self.mask_padding:
            raise ValueError("subject_timestep adaptive needs mask_padding true: blank slots have one timestep")
        if self.subject_timestep == "adaptive" and self.features == "stored":
            raise ValueError(
                "subject_timestep adaptive needs features recompute or auto: stored ones have one timestep"
            )
        return self

    @model_validator(mode="after")
    def _encoder_can_learn(self) -> Self:
        kind = self.subject_encoder
        if kind != "frozen" and self.features == "stored":
            raise ValueError(
                f"subject_encoder {kind} needs features recompute or auto: stored ones are those of the frozen UNet"
            )
        if kind in ("dino", "clip") and self.subject_timestep == "adaptive":
            raise ValueError(f"subject_encoder {kind} knows no timestep: leave subject_timestep at store")
        if kind not in ("dino", "clip") and self.subject_image_encoder != "auto":
            raise ValueError(f"subject_image_encoder is for subject_encoder dino or clip, but that is {kind}")
        return self


class MonitoringConfig(Config):
    """What is stored and measured along the way. Nothing here changes the weights."""

    checkpoint_every: int = Field(default=500, ge=1, description="Steps between checkpoints.")
    num_checkpoints: int = Field(default=3, ge=1, le=1000, description="Checkpoints that are kept, the newest ones.")
    validate_every: int = Field(default=1000, ge=0, description="Steps between measurements; 0: only in the end.")
    num_loss_pairs: int = Field(
        default=256, ge=0, le=100_000, description="Held-out pairs whose loss is measured; 0: none."
    )
    num_subjects: int = Field(default=4, ge=0, le=256, description="Held-out subjects of the sample sheet; 0: none.")
    prompts: tuple[str, ...] = Field(
        default=(
            "a photo of a {subject_class} on a beach",
            "a photo of a {subject_class} in the snow",
            "a photo of a {subject_class} on a table",
        ),
        description="Prompts that every one of these subjects is drawn with.",
    )
    mode: Literal["full_injection", "decoupled", "iterative"] = Field(
        default="decoupled", description="How the samples are made; iterative costs several times more."
    )
    num_sampling_steps: int = Field(default=20, ge=1, le=1000, description="Denoising steps of a sample.")
    guidance_scale: float = Field(default=7.5, ge=1.0, le=50.0, description="Guidance of a sample; 1 switches it off.")
    split_ratio: float = Field(
        default=0.4, gt=0.0, le=1.0, description="Share of the steps with the subject, in mode decoupled and iterative."
    )

    @model_validator(mode="after")
    def _samples_can_be_made(self) -> Self:
        self.sampler()
        return self

    def sampler(self, *, t_sub: SubjectTimestep = 1) -> SamplerConfig:
        """How the samples are made; loops, if any, are three, so that a sample always costs the same."""
        return SamplerConfig(
            mode=self.mode,
            num_steps=self.num_sampling_steps,
            split_ratio=self.split_ratio,
            guidance_scale=self.guidance_scale,
            t_sub=t_sub,
            loops=LoopConfig(stop="fixed", num_loops=3),
        )


class TrainingClusterConfig(RayConfig):
    """The Ray cluster, and how training on it meets losses."""

    min_workers: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Go on with as few workers as this when nodes are lost, and take more again when they are back; 0 "
        "waits for all of them.",
    )
    resize_interval_s: float = Field(
        default=30.0,
        gt=0.0,
        le=86_400.0,
        description="Where min_workers goes on with fewer: time between looks for places for more workers. Taking them "
        "costs a start, and the steps since the newest checkpoint, which are made again.",
    )
    max_failures: int = Field(
        default=3,
        ge=-1,
        description="Deaths of workers after which the run goes on from its last checkpoint; -1 sets no limit. Nodes "
        "that are taken away with a notice do not count.",
    )

    @model_validator(mode="after")
    def _elastic_range(self) -> Self:
        if self.num_workers and self.min_workers > self.num_workers:
            raise ValueError("min_workers is greater than num_workers")
        return self


def paper_training() -> TrainingConfig:
    """Section 4.1 of the paper: Adam at 1e-5, batch 1, one epoch."""
    return TrainingConfig(
        batch_size=1, optimizer=OptimizerConfig(kind="adam", lr=1e-5, weight_decay=0.0, clip_norm=0.0)
    )


def paper_xl_training() -> TrainingConfig:
    """Section 4.1 with Stable Diffusion XL: 30 % of the captions are empty."""
    return paper_training().model_copy(update={"text_dropout": XL_TEXT_DROPOUT})


def released_training() -> TrainingConfig:
    """What the authors' code does: four slots always attended to, the subject dropped in 80 % of the steps."""
    return TrainingConfig(
        batch_size=1,
        max_subjects=4,
        mask_padding=False,
        subject_dropout=0.8,
        extra_residual=True,
        precision="fp32",
        optimizer=OptimizerConfig(kind="adamw", lr=1e-4, weight_decay=0.01, clip_norm=1.0),
    )


def recommended_training() -> TrainingConfig:
    """Ours: larger batches, warm-up and cosine, averaged weights, empty captions for guidance."""
    return TrainingConfig(
        batch_size=32,
        text_dropout="auto",
        optimizer=OptimizerConfig(
            kind="adamw", lr=1e-4, weight_decay=0.0, schedule="cosine", warmup_steps=200, ema_decay=0.999
        ),
    )


TRAINING_PRESETS = {
    "paper": paper_training,
    "paper-xl": paper_xl_training,
    "released": released_training,
    "recommended": recommended_training,
}


def embedded_monitoring() -> MonitoringConfig:
    """Samples as the embedded model makes them well; see `ezigen.config.embedded`."""
    return MonitoringConfig(num_sampling_steps=25, guidance_scale=2.0, split_ratio=0.7)
