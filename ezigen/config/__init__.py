"""Every knob once: frozen, closed models with bounds, units and a sentence per field.

This package imports neither torch nor diffusers, so that a deployment's schema, a command's help and a plan cost
milliseconds instead of seconds.
"""

from ezigen.config.baseline import BaselineConfig
from ezigen.config.benchmark import BenchmarkConfig, BenchmarkKind
from ezigen.config.catalog import MOST_SLOTS, CatalogInputs, ClusterConfig
from ezigen.config.errors import ConfigurationError, ErrorCode, ItemError
from ezigen.config.evaluation import EvaluationConfig, EvaluationInputs
from ezigen.config.features import FeatureConfig, FeatureInputs
from ezigen.config.model import ModelConfig, StackConfig
from ezigen.config.pairs import CocoSelection, PairConfig, PairInputs, VideoSelection
from ezigen.config.pipeline import PipelineInputs
from ezigen.config.presets import PRESETS, SPEEDS, balanced, draft, embedded, exact, paper, released
from ezigen.config.ray import RayConfig
from ezigen.config.sampler import EditConfig, LoopConfig, SamplerConfig
from ezigen.config.sketch import SketchConfig
from ezigen.config.training import (
    TRAINING_PRESETS,
    MonitoringConfig,
    OptimizerConfig,
    SourceConfig,
    SubjectEncoderKind,
    TrainingClusterConfig,
    TrainingConfig,
    TrainingInputs,
    embedded_monitoring,
    recommended_training,
)

__all__ = [
    "MOST_SLOTS",
    "PRESETS",
    "SPEEDS",
    "TRAINING_PRESETS",
    "BaselineConfig",
    "BenchmarkConfig",
    "BenchmarkKind",
    "CatalogInputs",
    "ClusterConfig",
    "CocoSelection",
    "ConfigurationError",
    "EditConfig",
    "ErrorCode",
    "EvaluationConfig",
    "EvaluationInputs",
    "FeatureConfig",
    "FeatureInputs",
    "ItemError",
    "LoopConfig",
    "ModelConfig",
    "MonitoringConfig",
    "OptimizerConfig",
    "PairConfig",
    "PairInputs",
    "PipelineInputs",
    "RayConfig",
    "SamplerConfig",
    "SketchConfig",
    "SourceConfig",
    "StackConfig",
    "SubjectEncoderKind",
    "TrainingClusterConfig",
    "TrainingConfig",
    "TrainingInputs",
    "VideoSelection",
    "balanced",
    "draft",
    "embedded",
    "embedded_monitoring",
    "exact",
    "paper",
    "recommended_training",
    "released",
]
