"""What a sampler needs to be there before it can make an image."""

from ezigen.adapters import AdapterSet
from ezigen.adapters.card import check_subject_encoder
from ezigen.config import ConfigurationError, SamplerConfig
from ezigen.images.faces import load_opencv
from ezigen.sampling.autostop import StopEncoder


def check_networks(sampler: SamplerConfig, adapters: AdapterSet | None, stop_encoder: StopEncoder | None) -> None:
    """Raises ConfigurationError when a sampler needs adapters, an image encoder or OpenCV that is not there, or a
    timestep of a subject encoder that knows none.
    """
    if adapters is None and sampler.mode != "text_only":
        raise ConfigurationError(f"mode {sampler.mode} needs an adapter; pass one, or use mode text_only")
    if stop_encoder is None and sampler.stops_by_image:
        raise ConfigurationError(
            "loops.stop similarity needs an image encoder (DINOv2 or CLIP); pass one, or use fixed loops or "
            "loops.measure latent"
        )
    if sampler.subject_crop == "face":
        load_opencv()
    if adapters is not None:
        check_subject_encoder(adapters.subject_encoder_kind, sampler, "the adapter")
