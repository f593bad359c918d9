"""The objective: how well the frozen UNet with active adapters predicts the noise in a target (paper 4.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ezigen.adapters import AdapterSet
from ezigen.diffusion import NoiseSchedule
from ezigen.models import Stack, call_unet
from ezigen.models.precision import mixed_precision
from ezigen.training.batch import TrainBatch
from ezigen.training.conditions import Conditions
from ezigen.training.draws import Draws


@dataclass(frozen=True, eq=False)
class LossTerms:
    """loss: mean over the samples of their weighted losses, with a gradient. per_sample (B,): unweighted, without."""

    loss: Tensor
    per_sample: Tensor


def pair_loss(
    adapters: AdapterSet,
    stack: Stack,
    batch: TrainBatch,
    draws: Draws,
    conditions: Conditions,
    *,
    min_snr_gamma: float = 0.0,
) -> LossTerms:
    """Mean squared error of what the UNet predicts of noised targets, subject and text given.

    The target is the noise or the velocity, by the model's kind. Gradients reach the adapters alone. On a stack in bf16
    the adapters compute under autocast with weights in fp32; the loss is in fp32.
    """
    device = stack.device
    t, noise = draws.timesteps.to(device), draws.noise.to(device)
    latents = batch.mean
    if draws.posterior_noise is not None:
        latents = latents + batch.variance.sqrt() * draws.posterior_noise.to(device)
    noisy = stack.schedule.add_noise(latents, noise, t)
    with mixed_precision(device, stack.dtype, torch.float32):
        subject = adapters.subject_kv(conditions.subject)
    with adapters.active(subject):
        output = call_unet(stack.unet, noisy.to(stack.dtype), t, conditions.text, px_per_latent=stack.px_per_latent)
    error = output.float() - stack.schedule.target(latents, noise, t)
    per_sample = error.square().flatten(1).mean(dim=1)
    weights = loss_weights(stack.schedule, t, min_snr_gamma)
    return LossTerms(loss=(weights * per_sample).mean(), per_sample=per_sample.detach())


def loss_weights(schedule: NoiseSchedule, t: Tensor, min_snr_gamma: float) -> Tensor:
    """(B,) weights of samples at timesteps (B,): min(SNR, gamma), divided by what the prediction weighs already.

    Min-SNR weighting (arXiv 2303.09556, Section 3.4): the division is by SNR for epsilon, by SNR + 1 for velocity.
    gamma 0 weighs evenly.
    """
    alpha_bar = schedule.alpha_bar(t, t.float())
    if not min_snr_gamma:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    natural = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[schedule.prediction_type]
    return snr.clamp(max=min_snr_gamma) / natural
