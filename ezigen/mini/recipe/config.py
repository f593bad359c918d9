"""Every knob of the recipe, once. Two presets: `cpu` (one sitting on two cores) and `gpu` (minutes on one large
GPU).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

JUDGE_MINUTES = 5.0
"""The judge needs no more."""


class Closed(BaseModel):
    """A frozen group of settings; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorldConfig(Closed):
    """The pictures everything is trained on."""

    pictures: Path = Field(description="Folder of cut-outs named <code>.webp (the npm package's assets folder)")
    side_px: int = Field(64, ge=32, le=256, description="Side of a composed picture")
    num_backgrounds: int = Field(96, ge=1, description="Pre-drawn pictures per scene")
    num_morphs: int = Field(
        1_000, ge=0, description="Products bent and recoloured into things of their own; half of all samples show one"
    )
    white_share: float = Field(0.12, ge=0, le=1, description="Share of samples that show the product alone on white")


class VaeConfig(Closed):
    """The autoencoder: 4x smaller in each direction."""

    widths: tuple[int, int, int] = Field((16, 32, 64), description="Channels per resolution")
    latent_channels: int = Field(8, ge=2, le=32, description="Channels of a latent")
    batch: int = Field(32, ge=1, description="Crops of half a picture per step")
    num_pictures: int = Field(20_000, ge=1, description="Pictures composed once, from which the crops are taken")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="Decay of the averaged weights that are shipped")
    lr: float = Field(2e-3, gt=0, description="Peak learning rate")
    kl_weight: float = Field(1e-6, ge=0, description="Weight of the divergence from a unit Gaussian")
    edge_weight: float = Field(0.5, ge=0, description="Weight of the error of horizontal and vertical differences")
    minutes: float = Field(10, gt=0, description="Training time; the learning rate decays to its end")
    code_noise: float = Field(0.25, ge=0, description="Largest noise on codes while the decoder is polished, in units")
    polish_minutes: float = Field(
        15, gt=0, description="Training time of the decoder alone, after the encoder is frozen"
    )


class UnetConfig(Closed):
    """The denoiser and the text encoder, trained together on latents encoded beforehand."""

    widths: tuple[int, ...] = Field(
        (64, 128, 160), description="Channels per resolution, a quarter of the picture's side first"
    )
    layers_per_block: int = Field(1, ge=1, description="Residual and transformer blocks per resolution")
    head_dim: int = Field(64, ge=8, description="Channels per attention head")
    text_dim: int = Field(128, ge=16, description="Width of the text encoder")
    text_layers: int = Field(2, ge=1, description="Layers of the text encoder")
    num_latents: int = Field(60_000, ge=100, description="Samples composed and encoded once")
    num_captions: int = Field(4, ge=1, le=16, description="Captions drawn for each of them")
    batch: int = Field(64, ge=1, description="Latents per step")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate")
    use_muon: bool = Field(True, description="Muon for matrices instead of AdamW")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="Share of samples with an empty caption, for guidance")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged weights that are shipped")
    minutes: float = Field(65, gt=0, description="Training time; the learning rate decays to its end")


class AdapterConfig(Closed):
    """The subject adapters, trained on pairs with everything else frozen."""

    batch: int = Field(32, ge=1, description="Pairs per step")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate")
    subject_dropout: float = Field(0.2, ge=0, le=1, description="Share of samples without subject tokens")
    same_side: float = Field(0.8, ge=0, le=1, description="Share of pairs whose subject faces the target's way")
    product_weight: float = Field(2.0, ge=0, description="Extra weight of the product's region in the loss")
    low_share: float = Field(0.5, ge=0, le=1, description="Share of samples at timesteps below 600, where loops run")
    minutes: float = Field(30, gt=0, description="Training time; the learning rate decays to its end")


class JointConfig(Closed):
    """Denoiser and adapters, trained together on pairs; two targets share one subject."""

    num_subjects: int = Field(8, ge=1, description="Subjects per step, each with two targets")
    num_idle: int = Field(4, ge=0, description="Samples per step with idle adapters: they keep text-to-image as it is")
    lr: float = Field(5e-4, gt=0, description="Peak learning rate")
    same_side: float = Field(0.9, ge=0, le=1, description="Share of pairs whose subject faces the target's way")
    product_weight: float = Field(4.0, ge=0, description="Extra weight of the product's region in the loss")
    noisy_share: float = Field(
        0.8, ge=0, le=1, description="Share of samples at timesteps above 300, where shapes form; the rest anywhere"
    )
    warmup_steps: int = Field(20, ge=1, description="Steps over which the learning rate rises")
    ema_decay: float = Field(0.98, ge=0, lt=1, description="Decay of the averaged weights that are shipped")
    minutes: float = Field(20, gt=0, description="Training time; the learning rate decays to its end")

    @property
    def batch(self) -> int:
        """Samples per step."""
        return 2 * self.num_subjects + self.num_idle


class EncodersConfig(Closed):
    """The small CLIP and the small DINOv2 that judge pictures."""

    batch: int = Field(64, ge=2, description="Pictures per step")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate")
    minutes: float = Field(12, gt=0, description="Training time of each")


class RecipeConfig(Closed):
    """The whole recipe."""

    world: WorldConfig
    work: Path = Field(description="Folder of checkpoints, latents and sample sheets")
    device: str = Field("cpu", description="torch device")
    processes: int = Field(1, ge=1, description="Processes that compose pictures")
    threads: int = Field(1, ge=1, description="torch threads; one per process is best on a busy machine")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="Autocast type of forward passes")
    seed: int = Field(0, ge=0, description="Seed of everything random")
    vae: VaeConfig = VaeConfig()
    unet: UnetConfig = UnetConfig()
    adapter: AdapterConfig = AdapterConfig()
    joint: JointConfig = JointConfig()
    encoders: EncodersConfig = EncodersConfig()

    @property
    def minutes(self) -> float:
        """Training time of all phases, one after the other; fetching and encoding come on top."""
        alone = self.vae.minutes + self.vae.polish_minutes + self.unet.minutes + self.adapter.minutes
        return alone + self.joint.minutes + 2 * self.encoders.minutes + min(JUDGE_MINUTES, self.encoders.minutes)
