"""From configuration to an engine."""

from ezigen.config import ModelConfig, SamplerConfig
from ezigen.engine.engine import Engine, EngineLimits
from ezigen.engine.runner import Networks
from ezigen.sampling.load import load_networks


def load_engine(model: ModelConfig, sampler: SamplerConfig, limits: EngineLimits | None = None) -> Engine:
    """Load the networks that this sampler needs and make an engine of them.

    Raises ConfigurationError, with a remedy, for a missing or unsuitable model, adapter or image encoder.
    """
    return Engine(Networks(*load_networks(model, sampler)), sampler, limits)
