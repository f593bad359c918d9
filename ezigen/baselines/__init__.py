"""Other methods, made through diffusers from weights that are given: text-to-image pipelines, IP-Adapter.

Importing this package costs no torch; networks load at first use.
"""

from typing import TYPE_CHECKING

from ezigen.baselines.location import baseline_fingerprint, find_baseline
from ezigen.lazy import lazy_names

if TYPE_CHECKING:
    from ezigen.baselines.model import Baseline, BaselineRequest, load_baseline

__all__ = ["Baseline", "BaselineRequest", "baseline_fingerprint", "find_baseline", "load_baseline"]

__getattr__ = lazy_names(__name__, {"Baseline": "model", "BaselineRequest": "model", "load_baseline": "model"})
