"""From configuration to a generator."""

from pathlib import Path

from ezigen.adapters import (
    add_subject_encoder,
    attach_adapters,
    detach_adapters,
    import_checkpoint,
    load_adapter,
    read_card,
    resolve_adapter,
)
from ezigen.adapters.attach import AdapterSet
from ezigen.adapters.card import CARD_FILE, WEIGHTS_FILE
from ezigen.config import ConfigurationError, ModelConfig, SamplerConfig
from ezigen.models.image_encoder import load_image_encoder
from ezigen.models.stack import Stack, load_stack
from ezigen.models.text_image_encoder import load_text_image_encoder
from ezigen.sampling.autostop import GlobalEncoder, StopEncoder
from ezigen.sampling.generator import Generator

DEFAULT_IMAGE_ENCODER = "facebook/dinov2-base"
DEFAULT_CLIP = "openai/clip-vit-base-patch32"


def load_generator(model: ModelConfig, sampler: SamplerConfig, *, num_slots: int | None = None) -> Generator:
    """Load the networks that this sampler needs and put them together; num_slots as in Generator.

    Raises ConfigurationError, with a remedy, for a missing or unsuitable model, adapter or image encoder.
    """
    stack, adapters, stop_encoder = load_networks(model, sampler)
    return Generator(stack, adapters, stop_encoder, sampler, num_slots=num_slots)


def load_networks(model: ModelConfig, sampler: SamplerConfig) -> tuple[Stack, AdapterSet | None, StopEncoder | None]:
    """The stack, and the attached adapters and the image encoder if this sampler needs them. Raises as above."""
    stack = load_stack(model.model, device=model.device, dtype=model.dtype)
    adapters = _load_adapters(model, stack) if sampler.mode != "text_only" else None
    stop_encoder = load_stop_encoder(model, sampler, stack.device.type) if sampler.stops_by_image else None
    return stack, adapters, stop_encoder


def _load_adapters(model: ModelConfig, stack: Stack) -> AdapterSet:
    folder = resolve_adapter(model.adapter, model.model)
    if folder is None:
        raise ConfigurationError("adapter none: only mode text_only works without one; pass --adapter or that mode")
    adapters = attach_to_stack(stack, folder)
    adapters.requires_grad_(False).eval()
    return adapters


def attach_to_stack(stack: Stack, folder: Path) -> AdapterSet:
    """Attach the adapter of a folder, ours or the authors' checkpoint, to the stack's UNet, with its own subject
    encoder where its card names one.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        adapters = attach_adapters(stack.unet, extra_residual=True)
        import_checkpoint(folder, adapters)
        return adapters
    card = read_card(folder)
    try:
        adapters = attach_adapters(stack.unet, extra_residual=card.extra_residual, blocks=card.blocks)
    except ValueError as error:
        raise ConfigurationError(f"adapter {folder}: {error}; it was trained on another model") from error
    try:
        add_subject_encoder(
            adapters, stack.unet, card.subject_encoder, location=card.image_encoder, device=stack.device
        )
    except ConfigurationError as error:
        detach_adapters(stack.unet)
        raise ConfigurationError(f"adapter {folder}: {error}; or set image_encoder in its {CARD_FILE}") from error
    load_adapter(adapters, folder, base_fingerprint=stack.fingerprint)
    return adapters


def load_stop_encoder(model: ModelConfig, sampler: SamplerConfig, device: str) -> StopEncoder:
    """What decides when this sampler's loops stop: mini's own networks for mini, published ones for others."""
    by_clip = sampler.loops.measure == "clip"
    location = model.image_encoder
    if location == "auto":
        default = DEFAULT_CLIP if by_clip else DEFAULT_IMAGE_ENCODER
        location = "mini" if model.model == "mini" else default
    if by_clip:
        return GlobalEncoder(load_text_image_encoder(location, device))
    return load_image_encoder(location, device)
