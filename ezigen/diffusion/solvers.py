"""One denoising step of a solver, as a pure function of tensors.

Every sample of a batch has its own timestep t and next timestep next_t, so that requests in different phases share a
call. A negative next_t means the clean x_0. Nothing is remembered between calls: what a multistep solver needs of the
past is an argument. Tensors (B, ...) are fp32, timesteps (B,) integers. Each equals diffusers' scheduler of its name.
"""

import torch
from torch import Tensor

from ezigen.diffusion.schedule import NoiseSchedule


def ddim_step(schedule: NoiseSchedule, output: Tensor, sample: Tensor, t: Tensor, next_t: Tensor) -> Tensor:
    """The sample at next_t, deterministically (DDIM, eta 0: arXiv 2010.02502, Eq. 12)."""
    x0 = schedule.to_x0(output, sample, t)
    eps = schedule.to_eps(output, sample, t)
    alpha_bar = schedule.alpha_bar(next_t, sample, clean=schedule.final_alpha_cumprod)
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps


def ddpm_step(
    schedule: NoiseSchedule, output: Tensor, sample: Tensor, t: Tensor, next_t: Tensor, noise: Tensor
) -> Tensor:
    """The sample at next_t, drawn from the posterior with the smaller variance (DDPM: arXiv 2006.11239, Eq. 6-7)."""
    x0 = schedule.to_x0(output, sample, t)
    alpha_bar, next_alpha_bar = schedule.alpha_bar(t, sample), schedule.alpha_bar(next_t, sample)
    beta_bar, next_beta_bar = 1 - alpha_bar, 1 - next_alpha_bar
    alpha = alpha_bar / next_alpha_bar
    mean = next_alpha_bar**0.5 * (1 - alpha) / beta_bar * x0 + alpha**0.5 * next_beta_bar / beta_bar * sample
    variance = (next_beta_bar / beta_bar * (1 - alpha)).clamp(min=1e-20)
    return mean + variance**0.5 * noise


def dpmpp_2m_step(
    schedule: NoiseSchedule,
    x0: Tensor,
    sample: Tensor,
    t: Tensor,
    next_t: Tensor,
    last_x0: Tensor | None,
    last_t: Tensor,
) -> Tensor:
    """The sample at next_t, second order (DPM-Solver++(2M): arXiv 2211.01095, Algorithm 2).

    x0 is the prediction at t, last_x0 the one at last_t, one step earlier. Samples with a negative last_t (their first
    step of a pass) and those that end here (negative next_t) take a first-order step.

    With next_t > t the same formula is the inverse step, from an image towards noise (paper 3.4): h is negative then.
    Where every prediction is the same x_0, any number of steps of either order up and back down ends in that x_0,
    whatever their size, because the formula integrates a constant prediction exactly. What a network's inversion loses
    is therefore the change of its prediction from one timestep to the next alone.
    """
    _, sigma, log_snr = _half_log_snr(schedule, t, sample)
    next_alpha, next_sigma, next_log_snr = _half_log_snr(schedule, next_t, sample)
    h = next_log_snr - log_snr
    slope = torch.zeros_like(x0)
    if last_x0 is not None:
        last_h = log_snr - _half_log_snr(schedule, last_t, sample)[2]
        second_order = ((last_t >= 0) & (next_t >= 0)).reshape(last_h.shape)
        slope = torch.where(second_order, (x0 - last_x0) * (h / last_h), slope)
    return next_sigma / sigma * sample - next_alpha * torch.expm1(-h) * (x0 + 0.5 * slope)


def _half_log_snr(schedule: NoiseSchedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma and lambda = log(alpha / sigma); lambda is infinite where t is negative."""
    alpha_bar = schedule.alpha_bar(t, like)
    alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    return alpha, sigma, torch.log(alpha) - torch.log(sigma)
