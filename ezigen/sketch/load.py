"""From configuration to whoever draws the scenes."""

from ezigen.config import ConfigurationError, ModelConfig, SamplerConfig
from ezigen.engine.engine import EngineLimits
from ezigen.engine.load import load_engine
from ezigen.models.segmenter import load_segmenter
from ezigen.models.stack import Stack, choose_placement
from ezigen.sketch.engine import SketchingEngine
from ezigen.sketch.location import check_sketch
from ezigen.sketch.model import SketchModel, load_sketch_model
from ezigen.sketch.sketcher import Sketcher


def load_sketcher(model: ModelConfig, sampler: SamplerConfig, stack: Stack) -> Sketcher:
    """Load the sketch model (and SAM) of a configuration, on the stack's device and in its precision.

    Raises ConfigurationError, with a remedy, for a missing or unsuitable one, and for a sampler that has no use for it.
    """
    _check(model, sampler)
    drawer = load_sketch_model(model.sketch, device=stack.device, dtype=stack.dtype)
    return _make_sketcher(drawer, model, sampler, stack)


def load_sketching_engine(
    model: ModelConfig, sampler: SamplerConfig, limits: EngineLimits | None = None, *, fit_slots: bool = False
) -> SketchingEngine:
    """As `load_engine`, with the sketch model before it. Raises as both do."""
    _check(model, sampler)
    # First, so that the engine's slots are fitted to the memory that it leaves.
    device, dtype = choose_placement(model.device, model.dtype)
    drawer = load_sketch_model(model.sketch, device=device, dtype=dtype)
    engine = load_engine(model, sampler, limits, fit_slots=fit_slots)
    return SketchingEngine(engine, _make_sketcher(drawer, model, sampler, engine.stack))


def _check(model: ModelConfig, sampler: SamplerConfig) -> None:
    if not model.sketch.draws:
        raise ConfigurationError("no sketch model is configured; name one in sketch.model")
    check_sketch(model.sketch, sampler)


def _make_sketcher(drawer: SketchModel, model: ModelConfig, sampler: SamplerConfig, stack: Stack) -> Sketcher:
    config = model.sketch
    segmenter = load_segmenter(config.sam_model, device=stack.device) if config.region == "sam" else None
    return Sketcher(drawer, stack, config, negative_prompt=sampler.negative_prompt, segmenter=segmenter)
