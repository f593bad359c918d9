"""Schedule, solvers and noise: arithmetic on tensors with one timestep per sample; no networks."""

from ezigen.diffusion.noise import NoiseSource, Purpose
from ezigen.diffusion.schedule import CLEAN, NoiseSchedule, PredictionType, Spacing
from ezigen.diffusion.solvers import ddim_step, ddpm_step, dpmpp_2m_step

__all__ = [
    "CLEAN",
    "NoiseSchedule",
    "NoiseSource",
    "PredictionType",
    "Purpose",
    "Spacing",
    "ddim_step",
    "ddpm_step",
    "dpmpp_2m_step",
]
