"""How weights follow from gradients: the optimizer, its learning rate, and the running mean of the weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ezigen.config import ConfigurationError, OptimizerConfig

_MUON_MOMENTUM = 0.95


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """The rate of the update after `step` updates, 0 <= step < num_steps.

    Warm-up: lr / warmup_steps at the first update, lr at the last of them. Cosine: from lr right after the warm-up
    down to final_lr_share of it, which the step after the last one would have.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
    share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr_share + (1.0 - config.final_lr_share) * share)


class Optimizer:
    """Adam, AdamW, or Muon for matrices beside AdamW for the rest, with its state as tensors by parameter name.

    parameters: name -> parameter, in a fixed order.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self._named = dict(parameters)
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in self._named.items()}
        self._optimizers = _build(list(self._named.values()), config)

    def step(self, lr: float) -> None:
        """One update with this learning rate; the gradients are used up."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state: `{parameter}.{name of the state}` -> tensor. Empty before the first step."""
        return {
            f"{self._names[parameter]}.{key}": tensor
            for optimizer in self._optimizers
            for parameter, state in optimizer.state.items()
            for key, tensor in state.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take up a state; `source` is named in the ConfigurationError when it does not fit."""
        states: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition(".")
            states.setdefault(name, {})[key] = tensor
        if tensors and (wrong := set(states) ^ set(self._named)):
            raise ConfigurationError(f"{source}: the state of {min(wrong)} is missing or not wanted")
        for optimizer in self._optimizers:
            _load_state(optimizer, [states.get(self._names[p], {}) for p in _parameters(optimizer)])


def _build(parameters: list[nn.Parameter], config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    matrices = [p for p in parameters if p.ndim == 2] if config.kind == "muon" else []
    others = [p for p in parameters if config.kind != "muon" or p.ndim != 2]
    options: dict[str, Any] = {"betas": (config.beta1, config.beta2), "eps": config.epsilon, "fused": True}
    if config.kind == "adam":
        return [torch.optim.Adam(others, lr=config.lr, **options)]
    built: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=config.lr, weight_decay=config.weight_decay, **options)
    ]
    if matrices:
        # Updates scaled to the size of AdamW's, so that one learning rate serves both.
        muon: dict[str, Any] = {"momentum": _MUON_MOMENTUM, "adjust_lr_fn": "match_rms_adamw"}
        built.append(torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, **muon))
    return built


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _load_state(optimizer: torch.optim.Optimizer, states: list[dict[str, Tensor]]) -> None:
    given = {number: state for number, state in enumerate(states) if state}
    optimizer.load_state_dict({"state": given, "param_groups": optimizer.state_dict()["param_groups"]})


class WeightAverage:
    """The running mean of weights, updated after every step (exponential moving average).

    The decay rises to its value over the first steps, (1 + n) / (10 + n) after n of them, so that the mean soon forgets
    where training began.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._decay = decay
        self._parameters = list(parameters.values())
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after so many steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), [p.detach() for p in self._parameters], 1 - decay)
