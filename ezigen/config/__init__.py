"""Every knob once: frozen, closed models with bounds, units and a sentence per field.

This package imports neither torch nor diffusers, so that a deployment's schema, a command's help and a plan cost
milliseconds instead of seconds.
"""

from ezigen.config.catalog import CatalogInputs, ClusterConfig
from ezigen.config.errors import ConfigurationError, ErrorCode, ItemError
from ezigen.config.model import ModelConfig
from ezigen.config.presets import PRESETS, embedded, paper, released
from ezigen.config.sampler import LoopConfig, SamplerConfig

__all__ = [
    "PRESETS",
    "CatalogInputs",
    "ClusterConfig",
    "ConfigurationError",
    "ErrorCode",
    "ItemError",
    "LoopConfig",
    "ModelConfig",
    "SamplerConfig",
    "embedded",
    "paper",
    "released",
]
