"""From configuration to an engine."""

from dataclasses import replace

from ezigen.config import ModelConfig, SamplerConfig
from ezigen.engine.engine import Engine, EngineLimits
from ezigen.engine.runner import Networks
from ezigen.engine.sizing import fitting_slots
from ezigen.sampling.load import load_networks


def load_engine(
    model: ModelConfig, sampler: SamplerConfig, limits: EngineLimits | None = None, *, fit_slots: bool = False
) -> Engine:
    """Load the networks that this sampler needs and make an engine of them.

    fit_slots: limits.num_slots is only the most; see `fitting_slots`.

    Raises ConfigurationError, with a remedy, for a missing or unsuitable model, adapter or image encoder.
    """
    networks = Networks(*load_networks(model, sampler))
    limits = limits or EngineLimits()
    if fit_slots:
        limits = replace(limits, num_slots=fitting_slots(networks, sampler, limits.num_slots))
    return Engine(networks, sampler, limits)
