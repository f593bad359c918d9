"""The method for many requests at once, batched step by step.

Importing this package costs no torch; the engine loads at first use.
"""

from typing import TYPE_CHECKING

from ezigen.engine.counters import Counters, Counts, difference, occupancy
from ezigen.engine.ended import Ended
from ezigen.engine.planner import Call, Kind, Lane, Leg, StepPlanner
from ezigen.lazy import lazy_names

if TYPE_CHECKING:
    from ezigen.engine.engine import NETWORK_PARTS, Engine, EngineFull, EngineLimits
    from ezigen.engine.load import load_engine
    from ezigen.engine.runner import Networks

__all__ = [
    "NETWORK_PARTS",
    "Call",
    "Counters",
    "Counts",
    "Ended",
    "Engine",
    "EngineFull",
    "EngineLimits",
    "Kind",
    "Lane",
    "Leg",
    "Networks",
    "StepPlanner",
    "difference",
    "load_engine",
    "occupancy",
]

__getattr__ = lazy_names(
    __name__,
    {
        "NETWORK_PARTS": "engine",
        "Engine": "engine",
        "EngineFull": "engine",
        "EngineLimits": "engine",
        "Networks": "runner",
        "load_engine": "load",
    },
)
