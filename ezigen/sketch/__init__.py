"""Any text-to-image model draws the scene, and the subject's appearance is transferred into its picture.

Importing this package costs no torch; networks load at first use.
"""

from typing import TYPE_CHECKING

from ezigen.lazy import lazy_names
from ezigen.sketch.location import check_sketch, find_pipeline, sketch_fingerprint

if TYPE_CHECKING:
    from ezigen.sketch.attention import word_attention
    from ezigen.sketch.engine import SketchingEngine
    from ezigen.sketch.load import load_sketcher, load_sketching_engine
    from ezigen.sketch.model import SketchModel, load_sketch_model
    from ezigen.sketch.sketcher import Sketcher

__all__ = [
    "SketchModel",
    "Sketcher",
    "SketchingEngine",
    "check_sketch",
    "find_pipeline",
    "load_sketch_model",
    "load_sketcher",
    "load_sketching_engine",
    "sketch_fingerprint",
    "word_attention",
]

__getattr__ = lazy_names(
    __name__,
    {
        "SketchModel": "model",
        "Sketcher": "sketcher",
        "SketchingEngine": "engine",
        "load_sketch_model": "model",
        "load_sketcher": "load",
        "load_sketching_engine": "load",
        "word_attention": "attention",
    },
)
