"""EZIGen: zero-shot subject-driven image generation (arXiv 2409.08091), one request or many.

Importing this package costs no torch; `Personalizer` and `EZIGenPipeline` load at first use.
"""

from typing import TYPE_CHECKING

from ezigen.lazy import lazy_names

if TYPE_CHECKING:
    from ezigen.personalizer import Personalizer
    from ezigen.pipeline import EZIGenPipeline

__version__ = "0.1.0"

__all__ = ["EZIGenPipeline", "Personalizer", "__version__"]

__getattr__ = lazy_names(__name__, {"EZIGenPipeline": "pipeline", "Personalizer": "personalizer"})
