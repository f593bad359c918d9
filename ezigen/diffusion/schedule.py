"""The noise schedule of a diffusion model: how much of x_0 is left at every timestep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from ezigen.config import ConfigurationError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]

CLEAN = -1
"""The timestep after the last one: any negative timestep means x_0."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, and what the network predicts of it.

    alphas_cumprod: (num_train_steps,) fp32, decreasing. final_alpha_cumprod: abar after the last DDIM step.
    All methods take timesteps (B,), one per sample, and tensors (B, ...) of the same shape.
    """

    alphas_cumprod: Tensor
    prediction_type: PredictionType = "epsilon"
    spacing: Spacing = "leading"
    steps_offset: int = 0
    final_alpha_cumprod: float = 1.0
    _by_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The schedule of a diffusers scheduler_config.json, whichever scheduler class wrote it.

        Samples are latents, so `clip_sample` and `thresholding` do not apply. Raises ConfigurationError for betas,
        predictions and spacings that are not implemented.
        """
        if config.get("rescale_betas_zero_snr"):
            raise ConfigurationError("scheduler: rescale_betas_zero_snr is not supported; use another model")
        alphas_cumprod = torch.cumprod(1.0 - _betas(config), dim=0)
        to_one = config.get("set_alpha_to_one", True)
        return cls(
            alphas_cumprod=alphas_cumprod,
            prediction_type=_choice(config, "prediction_type", PredictionType, "epsilon"),
            spacing=_choice(config, "timestep_spacing", Spacing, "leading"),
            steps_offset=int(config.get("steps_offset", 0)),
            final_alpha_cumprod=1.0 if to_one else float(alphas_cumprod[0]),
        )

    @property
    def num_train_steps(self) -> int:
        """Timesteps 0 .. num_train_steps - 1 exist."""
        return len(self.alphas_cumprod)

    def timesteps(self, num_steps: int, spacing: Spacing | None = None, offset: int | None = None) -> list[int]:
        """The timesteps of a full pass, from noise to image: 981, 961, ..., 1 for 50 leading steps with offset 1.

        The arithmetic is that of diffusers' DDIM and DDPM schedulers. Raises ConfigurationError when the schedule has
        fewer timesteps than num_steps.
        """
        total = self.num_train_steps
        if not 1 <= num_steps <= total:
            raise ConfigurationError(f"num_steps is {num_steps}, but the model's schedule has 1 to {total} steps")
        spacing = self.spacing if spacing is None else spacing
        if spacing == "leading":
            shift = self.steps_offset if offset is None else offset
            timesteps = [index * (total // num_steps) + shift for index in reversed(range(num_steps))]
            if timesteps[0] >= total:
                raise ConfigurationError(f"num_steps is {num_steps}: use fewer, the model's steps_offset is {shift}")
            return timesteps
        if spacing == "trailing":
            return [int(t) - 1 for t in np.round(np.arange(total, 0, -total / num_steps))]
        return [int(t) for t in np.linspace(0, total - 1, num_steps).round()[::-1]]

    def alpha_bar(self, t: Tensor, like: Tensor, clean: float = 1.0) -> Tensor:
        """The abar of each sample's timestep, shaped (B, 1, ...) to multiply `like`; `clean` where t is negative."""
        table = self._table(like.device)
        values = torch.where(t < 0, clean, table[t.clamp(min=0)])
        return values.reshape(-1, *(1,) * (like.ndim - 1))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for clean x_0 and unit noise."""
        alpha_bar = self.alpha_bar(t, x0)
        return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise

    def to_x0(self, output: Tensor, sample: Tensor, t: Tensor) -> Tensor:
        """The clean x_0 that a network output means for x_t."""
        if self.prediction_type == "sample":
            return output
        alpha_bar = self.alpha_bar(t, sample)
        if self.prediction_type == "epsilon":
            return (sample - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5
        return alpha_bar**0.5 * sample - (1 - alpha_bar) ** 0.5 * output

    def to_eps(self, output: Tensor, sample: Tensor, t: Tensor) -> Tensor:
        """The noise that a network output means for x_t."""
        if self.prediction_type == "epsilon":
            return output
        alpha_bar = self.alpha_bar(t, sample)
        if self.prediction_type == "v_prediction":
            return alpha_bar**0.5 * output + (1 - alpha_bar) ** 0.5 * sample
        return (sample - alpha_bar**0.5 * output) / (1 - alpha_bar) ** 0.5

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity sqrt(abar) eps - sqrt(1 - abar) x_0, what a v_prediction network is trained on."""
        alpha_bar = self.alpha_bar(t, x0)
        return alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * x0

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to predict for x_t = add_noise(x0, noise, t)."""
        if self.prediction_type == "epsilon":
            return noise
        return x0 if self.prediction_type == "sample" else self.velocity(x0, noise, t)

    def _table(self, device: torch.device) -> Tensor:
        # One copy per device for good: moving it at every step would make the GPU wait for the CPU.
        if device not in self._by_device:
            self._by_device[device] = self.alphas_cumprod.to(device)
        return self._by_device[device]


def _betas(config: Mapping[str, Any]) -> Tensor:
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float32)
    kind = config.get("beta_schedule", "linear")
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    num_steps = config.get("num_train_timesteps", 1000)
    if kind == "linear":
        return torch.linspace(start, end, num_steps, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, num_steps, dtype=torch.float32) ** 2
    raise ConfigurationError(f"scheduler: beta_schedule {kind!r} is not supported; use linear or scaled_linear")


def _choice(config: Mapping[str, Any], name: str, kind: Any, default: str) -> Any:
    value = config.get(name, default)
    if value not in get_args(kind):
        allowed = ", ".join(get_args(kind))
        raise ConfigurationError(f"scheduler: {name} {value!r} is not supported; use one of {allowed}")
    return value
