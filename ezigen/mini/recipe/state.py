"""A resumable training loop: time-based schedule, atomic checkpoints, a progress line.

Training time is the budget: `minutes` of steps, wherever they were run. The learning rate is a function of the share
of that time already used, so a phase can be cut or extended by changing one number, and a killed phase goes on from
its last checkpoint.

On a GPU a step of these small networks is thousands of kernels of a few microseconds each. A phase whose losses are
computed on the device alone is therefore recorded once as a CUDA graph and replayed.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ezigen.mini.recipe.optimizer import Muon, is_matrix

CHECKPOINT_EVERY_S = 60.0
REPORT_EVERY_S = 10.0
AVERAGE_EVERY = 4
READ_EVERY = 25
"""Replayed steps between two looks at the loss; every look waits for the device."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)


@dataclass
class Trainer:
    """One phase's modules, optimizer and clock; `trainable` modules are checkpointed together with their averages."""

    name: str
    modules: dict[str, nn.Module]
    lr: float
    minutes: float
    folder: Path
    ema_decay: float = 0.0
    weight_decay: float = 0.01
    use_muon: bool = False
    warmup_steps: int = 100
    captures: bool = False
    """Whether a step may be recorded and replayed, where there is a GPU."""
    step: int = 0
    seconds: float = 0.0
    parameters: list[nn.Parameter] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [
            (f"{key}.{n}", p) for key, m in self.modules.items() for n, p in m.named_parameters() if p.requires_grad
        ]
        self.parameters = [p for _, p in named]
        self.names = [n for n, _ in named]
        matrices = [p for n, p in named if self.use_muon and is_matrix(n, p)]
        kept = {id(p) for p in matrices}
        others = [p for p in self.parameters if id(p) not in kept]
        self.muon = Muon(matrices, weight_decay=self.weight_decay)
        self.device = self.parameters[0].device
        self.captures = self.captures and self.device.type == "cuda"
        self.rate = torch.tensor(self.lr, device=self.device)
        self.optimizer = torch.optim.AdamW(
            others,
            lr=self.rate,
            betas=(0.9, 0.99),
            weight_decay=self.weight_decay,
            capturable=self.device.type == "cuda",
        )
        if self.ema_decay:
            self.average = {n: p.detach().clone() for n, p in named}
        self.resume()

    @property
    def path(self) -> Path:
        """Where the checkpoint lies."""
        return self.folder / f"{self.name}.pt"

    def share(self) -> float:
        """Used share of the training time, 0..1."""
        return min(1.0, self.seconds / (60 * self.minutes))

    def learning_rate(self) -> float:
        """Linear warm-up over `warmup_steps`, then a cosine over the training time down to 2 %."""
        warm = min(1.0, (self.step + 1) / self.warmup_steps)
        return self.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.share())))

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        if not self.path.is_file():
            return
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.muon.load_state_dict(state.get("muon", {"buffers": []}))
        self.step, self.seconds = state["step"], state["seconds"]
        if self.average:
            self.average = {
                n: a.to(p.device) for (n, a), p in zip(state["average"].items(), self.parameters, strict=True)
            }

    def save(self) -> None:
        """Write the checkpoint."""
        modules = {key: module.state_dict() for key, module in self.modules.items()}
        optimizers = {"optimizer": self.optimizer.state_dict(), "muon": self.muon.state_dict()}
        clock = {"step": self.step, "seconds": self.seconds}
        state = {"modules": modules, "average": self.average} | optimizers | clock
        write_atomically(self.path, lambda path: torch.save(state, path))

    def update(self, loss: Tensor) -> None:
        """One optimizer step with clipped gradients, and the averages after it."""
        self.rate.fill_(self.learning_rate())
        self._descend(loss)
        self._count_step()

    def _descend(self, loss: Tensor) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.muon.step(self.rate)

    def _count_step(self) -> None:
        self.step += 1
        if self.average and self.step % AVERAGE_EVERY == 0:
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step)) ** AVERAGE_EVERY
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters], 1 - decay)

    def averaged_modules(self) -> dict[str, dict[str, Tensor]]:
        """Weights to ship, per module: averages where kept, the current ones elsewhere."""
        weights = {key: dict(module.state_dict()) for key, module in self.modules.items()}
        for name, value in self.average.items():
            key, rest = name.split(".", 1)
            weights[key][rest] = value
        return weights

    def _record(self, losses: Iterator[Tensor]) -> Callable[[], Tensor] | None:
        """Records a step as a CUDA graph; what is returned replays it and gives its loss, which the next replay
        overwrites. None where that fails.
        """
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # lets optimizers and libraries allocate what stays
                self.update(next(losses))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                loss = next(losses)
                self._descend(loss)
        except RuntimeError as error:
            print(f"{self.name}: a step cannot be recorded and runs as it is: {error}", file=sys.stderr, flush=True)
            return None

        def replay() -> Tensor:
            self.rate.fill_(self.learning_rate())
            graph.replay()
            self._count_step()
            return loss

        return replay

    def _eager(self, losses: Iterator[Tensor]) -> Callable[[], Tensor]:
        def take_step() -> Tensor:
            loss = next(losses)
            self.update(loss)
            return loss

        return take_step

    def run(
        self,
        losses: Iterator[Tensor],
        batch: int,
        on_checkpoint: Callable[[], None] | None = None,
        checkpoint_s: float = CHECKPOINT_EVERY_S,
    ) -> None:
        """Draw losses and step until the time is used; report, save and call `on_checkpoint` along the way."""
        started, since, count, mean = self.seconds, time.monotonic(), 0, 0.0
        saved = reported = since
        if self.share() < 1:
            recorded = self._record(losses) if self.captures else None
            take_step = recorded or self._eager(losses)
            read_every = READ_EVERY if recorded else 1
        while self.share() < 1:
            loss = take_step()
            count += 1
            if count % read_every:
                continue
            mean += (float(loss.detach()) - mean) / min(count // read_every, 50)
            now = time.monotonic()
            self.seconds = started + now - since
            if now - reported > REPORT_EVERY_S:
                reported = now
                self.report(mean, count * batch / (now - since))
            if now - saved > checkpoint_s:
                self.save()
                if on_checkpoint:
                    on_checkpoint()
                saved = time.monotonic()
        self.save()
        if on_checkpoint:
            on_checkpoint()

    def report(self, loss: float, rate: float) -> None:
        """Print one progress line: step, loss, samples a second, minutes left."""
        left = self.minutes - self.seconds / 60
        progress = f"{self.name} step {self.step} loss {loss:.4f} rate {rate:.0f}/s"
        print(f"{progress} lr {self.learning_rate():.1e} eta {left:.1f} min", file=sys.stderr, flush=True)
