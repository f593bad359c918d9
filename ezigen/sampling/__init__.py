"""The method for a batch of requests: sketch, appearance transfer, iteration, autostop.

Importing this package costs no torch; the generator loads at first use.
"""

from typing import TYPE_CHECKING

from ezigen.lazy import lazy_names
from ezigen.sampling.request import Edit, OnStep, Phase, Request, Sample, StepReport, StopReason

if TYPE_CHECKING:
    from ezigen.sampling.autostop import patch_similarity, stop_reason
    from ezigen.sampling.generator import Generator
    from ezigen.sampling.load import attach_to_stack, load_generator

__all__ = [
    "Edit",
    "Generator",
    "OnStep",
    "Phase",
    "Request",
    "Sample",
    "StepReport",
    "StopReason",
    "attach_to_stack",
    "load_generator",
    "patch_similarity",
    "stop_reason",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Generator": "generator",
        "attach_to_stack": "load",
        "load_generator": "load",
        "patch_similarity": "autostop",
        "stop_reason": "autostop",
    },
)
