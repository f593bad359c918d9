"""What a model's features look like and cost, from its configuration files alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockLayout:
    """A transformer block's name and the shape of its subject tokens (num_tokens, num_channels) for one picture."""

    name: str
    num_tokens: int
    num_channels: int

    @property
    def num_values(self) -> int:
        """Numbers per subject."""
        return self.num_tokens * self.num_channels


@dataclass(frozen=True)
class EncodingCost:
    """Floating-point operations for one picture or text; a multiply-add counts two."""

    vae_flop: float
    unet_flop: float
    text_flop: float

    @property
    def subject_flop(self) -> float:
        """Encoding one subject from its picture: VAE, prompt, one UNet forward."""
        return self.vae_flop + self.unet_flop + self.text_flop


@dataclass(frozen=True)
class ModelShape:
    """The shapes that a Stable Diffusion stack gives to what is stored."""

    size_px: int
    latent_shape: tuple[int, int, int]
    text_shape: tuple[int, int]
    blocks: tuple[BlockLayout, ...]
    cost: EncodingCost

    @classmethod
    def of(cls, model: str) -> "ModelShape":
        """The shape of "mini", of a folder in diffusers format, or of a hub id, without reading its weights.

        Raises ConfigurationError like `load_stack`.
        """
        raise NotImplementedError
