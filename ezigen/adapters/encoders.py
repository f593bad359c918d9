"""Giving adapters a subject encoder of their own (paper, Tables 4 and 5)."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ezigen.adapters.attach import AdapterSet
from ezigen.config import ConfigurationError, SubjectEncoderKind
from ezigen.metrics.scores import CLIP_MODEL, DINO_MODEL
from ezigen.models.blocks import transformer_blocks
from ezigen.models.fingerprint import image_encoder_fingerprint
from ezigen.models.image_encoder import ImageEncoder, load_image_encoder
from ezigen.models.location import resolve_folder
from ezigen.subject.learned import ImageSource, ProjectedTokens, TrainedUNet

if TYPE_CHECKING:
    from ezigen.subject.learned import LearnedEncoder

_PARTS = {"dino": "dinov2", "clip": "clip"}


def locate_image_encoder(kind: SubjectEncoderKind, location: str, base_model: str) -> str:
    """Which image encoder "auto" means: the one shipped with "mini", else a published one."""
    if location != "auto":
        return location
    return "mini" if base_model == "mini" else {"dino": DINO_MODEL, "clip": CLIP_MODEL}.get(kind, "")


def add_subject_encoder(
    adapters: AdapterSet,
    unet: nn.Module,
    kind: SubjectEncoderKind,
    *,
    location: str = "",
    device: torch.device | None = None,
    seed: int = 0,
) -> None:
    """Let the adapters, attached to this UNet, have their subjects encoded by what learns with them; "frozen": nothing.

    location: of the image encoder of dino and clip, loaded on the device. seed: of what does not begin as a copy.
    Its weights have the precision of the adapters'.
    Raises ConfigurationError for an image encoder that is missing or of the other kind.
    """
    if kind == "frozen":
        return
    encoder: LearnedEncoder
    if kind == "trained":
        encoder = TrainedUNet(unet, adapters.names)
    else:
        blocks = {name: block for name, block in transformer_blocks(unet).items() if name in adapters.names}
        images, source = _load_images(kind, location, device or torch.device("cpu"))
        encoder = ProjectedTokens(kind, images, source, blocks, seed=seed)
    adapters.subject_encoder = encoder.to(next(adapters.parameters()).dtype)


def _load_images(
    kind: Literal["dino", "clip"], location: str, device: torch.device
) -> tuple[ImageEncoder, ImageSource]:
    try:
        images = load_image_encoder(location, device.type, part=_PARTS[kind])
    except ConfigurationError as error:
        raise ConfigurationError(f"subject encoder {kind}: {error}") from error
    config: Any = images.network.config
    if config.model_type.startswith("clip") != (kind == "clip"):
        raise ConfigurationError(
            f"subject encoder {kind}: {location} holds a {config.model_type}; name a folder or hub id of a {kind} model"
        )
    if getattr(config, "num_register_tokens", 0):
        raise ConfigurationError(
            f"subject encoder {kind}: {location} has register tokens, which are no place in a picture; use one without"
        )
    folder = resolve_folder(location, _PARTS[kind])
    return images, ImageSource(location, image_encoder_fingerprint(folder))
