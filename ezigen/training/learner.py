"""Adapters that learn: weights, optimizer, averages and the number of steps done."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ezigen.adapters import (
    AdapterCard,
    AdapterSet,
    add_subject_encoder,
    attach_adapters,
    detach_adapters,
    import_checkpoint,
    load_adapter,
    read_card,
    save_adapter,
)
from ezigen.adapters.encoders import locate_image_encoder
from ezigen.config import ConfigurationError, TrainingConfig
from ezigen.models import Stack
from ezigen.subject import SUBJECT_PROMPT, ProjectedTokens, TrainedUNet
from ezigen.training import state as files
from ezigen.training.batch import SOURCES, TrainBatch
from ezigen.training.conditions import Conditioner
from ezigen.training.draws import Draws, draw, without_dropout
from ezigen.training.loss import LossTerms, pair_loss
from ezigen.training.optimizer import Optimizer, WeightAverage, learning_rate
from ezigen.training.precision import cast_stack, check_precision, choose_precision
from ezigen.training.report import StepReport, TrainingDiverged


class Learner:
    """Trains the adapters of a stack's UNet, and their own subject encoder if they have one, step by step; everything
    else stays frozen.

    The stack is taken over: its networks are cast to the run's precision, so use `learner.stack` from here on. Where a
    torch.distributed process group of several processes exists, each of them makes a learner and calls train_step with
    its share of the same global batch. initial: an adapter folder (ours or the authors' checkpoint) to start from;
    None starts from copies of the self-attention layers (Section 3.1). base_model: the name of the stack's model, by
    which `auto` chooses an image encoder for subjects.

    Raises ConfigurationError for settings that do not fit the stack or the initial adapter.
    """

    def __init__(
        self,
        stack: Stack,
        config: TrainingConfig,
        *,
        num_steps: int,
        t_sub: int,
        template: str = SUBJECT_PROMPT,
        initial: Path | None = None,
        base_model: str = "",
    ) -> None:
        config = config.for_model(xl=stack.text_encoder_2 is not None)
        _check_timesteps(config, stack)
        self.step = 0
        self.num_steps = num_steps
        self.precision = choose_precision(config, stack.device)
        check_precision(stack, self.precision)
        self.adapters = _attach(stack, config, initial, base_model)
        self.stack = cast_stack(stack, self.precision)
        self._config = config
        self._identity = {
            "training": config.identity(),
            "model": stack.fingerprint,
            "num_steps": num_steps,
            "t_sub": t_sub,
            "template": template,
            "precision": self.precision,
        }
        if isinstance(learned := self.adapters.subject_encoder, ProjectedTokens):
            self._identity["image_encoder"] = learned.source.fingerprint
        padded_slots = 0 if config.mask_padding else config.max_subjects
        self._conditioner = Conditioner(
            self.stack,
            t_sub=t_sub,
            template=template,
            padded_slots=padded_slots,
            adaptive=config.subject_timestep == "adaptive",
            learned=learned,
        )
        self._world_size = distributed.get_world_size() if _is_distributed() else 1
        self._objective = self._wrap(_Objective(self))
        # Named after the processes agree: DistributedDataParallel has copied the first one's weights to all.
        self._parameters = {name: p for name, p in self.adapters.tensors().items() if isinstance(p, nn.Parameter)}
        self._optimizer = Optimizer(self._parameters, config.optimizer)
        decay = config.optimizer.ema_decay
        self._average = WeightAverage(self._parameters, decay) if decay else None
        if config.gradient_checkpointing:
            self.stack.unet.enable_gradient_checkpointing(self._run_again_later)
            if isinstance(learned, TrainedUNet):
                learned.unet.enable_gradient_checkpointing(self._run_again_later)

    def close(self) -> None:
        """Takes the adapters out of the UNet again."""
        self.stack.unet.disable_gradient_checkpointing()
        detach_adapters(self.stack.unet)

    def train_step(self, batches: Sequence[TrainBatch], *, num_samples: int, flag: bool = False) -> StepReport:
        """One optimizer step on this process's micro-batches of a global batch of `num_samples`.

        The gradient is the mean over the global batch, however it is divided; processes meet once for it, with the last
        micro-batch, and once for a few numbers. flag: a request that every process sees in its report.

        Raises TrainingDiverged in every process, before weights change, when the loss or the gradient is not finite or
        the loss is above config.max_loss; ValueError when there are no samples or not as many as `num_samples`.
        """
        if not batches:
            raise ValueError("a process without samples: the batch is smaller than the number of processes")
        self._optimizer.zero_grad()  # what a step that failed may have left
        tally = _Tally(self.stack.device, flag=flag)
        for number, batch in enumerate(batches, start=1):
            with self._accumulating(is_last=number == len(batches)):
                terms: LossTerms = self._objective(batch)
                # DistributedDataParallel takes the mean over processes, whose shares need not be equal.
                share = len(batch) * self._world_size / num_samples
                (terms.loss * share).backward()  # type: ignore[no-untyped-call]
            tally.add(batch, terms)
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        report = tally.report(self.step + 1, self._learning_rate(), norm, is_shared=self._world_size > 1)
        self._check(report, num_samples)
        if self._config.optimizer.clip_norm:
            nn.utils.clip_grads_with_norm_(self._parameters.values(), self._config.optimizer.clip_norm, norm)
        self._optimizer.step(report.lr)
        self.step += 1
        if self._average:
            self._average.update(self.step)
        return report

    @torch.no_grad()
    def held_out_loss(self, batches: Iterator[TrainBatch] | Sequence[TrainBatch]) -> tuple[float, int]:
        """Sum of the unweighted losses of these samples, without dropout, and their number; of this process alone.

        With the averaged weights where they are kept. Equal positions draw equal noise, so measurements compare.
        """
        total, count = torch.zeros((), dtype=torch.float64, device=self.stack.device), 0
        with self._averaged(dtype=None):
            for batch in batches:
                terms = self._terms(batch, without_dropout(draw(self._config, batch)))
                total += terms.per_sample.double().sum()
                count += len(batch)
        return float(total), count

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Inside, the adapters are as they would be used: averaged where averages are kept, in the stack's dtype."""
        return self._averaged(dtype=self.stack.dtype)

    def save(self, folder: Path) -> None:
        """Write a checkpoint of this step, from which `load` goes on bit by bit; state.json comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        files.write_tensors(folder / files.WEIGHTS_FILE, self._parameters)
        files.write_tensors(folder / files.OPTIMIZER_FILE, self._optimizer.tensors())
        if self._average:
            files.write_tensors(folder / files.AVERAGE_FILE, self._average.tensors)
        facts: dict[str, Any] = {"format_version": files.FORMAT_VERSION, "step": self.step}
        facts |= {"num_workers": self._world_size, "versions": {"torch": torch.__version__}}
        files.write_state(folder, facts | {"identity": self._identity})

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint, on any number of processes.

        Raises ConfigurationError when it is incomplete or of another run, naming the first setting that differs.
        """
        stored = files.read_state(folder)
        if found := files.first_difference(stored["identity"], self._identity):
            name, theirs, ours = found
            raise ConfigurationError(
                f"checkpoint {folder}: made with {name} {theirs}, but this run's is {ours}; use the same, "
                "or another run"
            )
        optimizer = files.read_tensors(folder / files.OPTIMIZER_FILE)
        files.copy_tensors(folder / files.WEIGHTS_FILE, self._parameters)
        if self._average:
            files.copy_tensors(folder / files.AVERAGE_FILE, self._average.tensors)
        self._optimizer.load_tensors(optimizer, f"checkpoint {folder}: {files.OPTIMIZER_FILE}")
        self.step = int(stored["step"])

    def save_adapter(self, folder: Path, card: AdapterCard) -> AdapterCard:
        """Write the adapter in fp32, averaged where averages are kept; returns the card with base and counts."""
        card = card.model_copy(update={"base_fingerprint": self.stack.fingerprint})
        with self._averaged(dtype=None):
            return save_adapter(self.adapters, folder, card)

    def _terms(self, batch: TrainBatch, draws: Draws) -> LossTerms:
        conditions = self._conditioner.conditions(batch, draws)
        gamma = self._config.min_snr_gamma
        return pair_loss(self.adapters, self.stack, batch, draws, conditions, min_snr_gamma=gamma)

    def _train_terms(self, batch: TrainBatch) -> LossTerms:
        return self._terms(batch, draw(self._config, batch))

    def _wrap(self, objective: "_Objective") -> nn.Module:
        if self._world_size == 1:
            return objective
        return DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)

    def _accumulating(self, *, is_last: bool) -> AbstractContextManager[None]:
        if is_last or not isinstance(self._objective, DistributedDataParallel):
            return nullcontext()
        return self._objective.no_sync()

    def _learning_rate(self) -> float:
        return learning_rate(self._config.optimizer, self.step, self.num_steps)

    def _check(self, report: StepReport, num_samples: int) -> None:
        if report.samples != num_samples:
            raise ValueError(f"num_samples is {num_samples}, but the processes have {report.samples} together")
        if not math.isfinite(report.loss):
            raise TrainingDiverged(report.step, "loss", report.loss)
        if not math.isfinite(report.grad_norm):
            raise TrainingDiverged(report.step, "gradient norm", report.grad_norm)
        if (limit := self._config.max_loss) and report.loss > limit:
            raise TrainingDiverged(report.step, "loss", report.loss, limit)

    @contextmanager
    def _averaged(self, dtype: torch.dtype | None) -> Iterator[None]:
        """The parameters stay the same objects, so the optimizer and DistributedDataParallel notice nothing."""
        current = {name: parameter.data for name, parameter in self._parameters.items()}
        wanted = self._average.tensors if self._average else current
        try:
            for name, parameter in self._parameters.items():
                parameter.data = wanted[name].to(dtype or wanted[name].dtype)
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = current[name]

    def _run_again_later(self, function: Any, *args: Any) -> Any:
        """Gradient checkpointing of a part of the UNet, which attends to the same subjects when it is run again."""
        return checkpoint(
            function, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self.adapters.as_now())
        )


class _Objective(nn.Module):
    """What DistributedDataParallel wraps: of all modules it registers the adapters only."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.adapters = learner.adapters
        self.__dict__["_terms"] = learner._train_terms

    def forward(self, batch: TrainBatch) -> LossTerms:
        terms: LossTerms = self.__dict__["_terms"](batch)
        return terms


class _Tally:
    """Sums over a step's samples, kept on the device until they are asked for."""

    def __init__(self, device: torch.device, *, flag: bool) -> None:
        # Weighted loss, flag, then losses and counts by source. fp64: a sum of shares must not depend on the shares.
        self._sums = torch.zeros(2 + 2 * len(SOURCES), dtype=torch.float64, device=device)
        self._sums[1] = float(flag)

    def add(self, batch: TrainBatch, terms: LossTerms) -> None:
        """Take in one micro-batch."""
        device, num_sources = self._sums.device, len(SOURCES)
        sources = batch.sources.to(device)
        self._sums[0] += terms.loss.detach().double() * len(batch)
        self._sums[2 : 2 + num_sources].index_add_(0, sources, terms.per_sample.double())
        self._sums[2 + num_sources :].index_add_(0, sources, torch.ones_like(terms.per_sample, dtype=torch.float64))

    def report(self, step: int, lr: float, norm: Tensor, *, is_shared: bool) -> StepReport:
        """The step over all processes. The gradient is the same in all of them, so its norm needs no exchange."""
        if is_shared:
            distributed.all_reduce(self._sums)
        # The one moment of a step at which the CPU waits for the device.
        loss, flag, *by_source, grad_norm = torch.cat([self._sums, norm.detach().double().reshape(1)]).tolist()
        losses, counts = by_source[: len(SOURCES)], [int(count) for count in by_source[len(SOURCES) :]]
        return StepReport(
            step=step,
            loss=loss / max(1, sum(counts)),
            grad_norm=grad_norm,
            lr=lr,
            samples=sum(counts),
            loss_by_source=tuple(total / max(1, count) for total, count in zip(losses, counts, strict=True)),
            samples_by_source=tuple(counts),
            flag=flag > 0,
        )


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _check_timesteps(config: TrainingConfig, stack: Stack) -> None:
    num_train_steps = stack.schedule.num_train_steps
    for name in SOURCES:
        source = getattr(config, name)
        if source.weight and source.max_timestep >= num_train_steps:
            raise ConfigurationError(
                f"training.{name}.max_timestep is {source.max_timestep}, but the model's schedule ends at "
                f"{num_train_steps - 1}"
            )


def _attach(stack: Stack, config: TrainingConfig, initial: Path | None, base_model: str) -> AdapterSet:
    """Trainable adapters in fp32, whatever the networks are in."""
    card = _initial_card(config, initial)
    try:
        adapters = attach_adapters(
            stack.unet, extra_residual=config.extra_residual, blocks=config.adapter_blocks
        ).float()
    except ValueError as error:
        raise ConfigurationError(f"training.adapter_blocks: {error}") from error
    kind = config.subject_encoder
    location = locate_image_encoder(kind, config.subject_image_encoder, base_model)
    try:
        if card.subject_encoder == "frozen":  # its adapters begin, the encoder begins afresh
            _load_initial(adapters, stack, initial)
        add_subject_encoder(adapters, stack.unet, kind, location=location, device=stack.device, seed=config.seed)
        if card.subject_encoder != "frozen":
            _load_initial(adapters, stack, initial)
    except ConfigurationError:
        detach_adapters(stack.unet)
        raise
    return adapters


def _initial_card(config: TrainingConfig, initial: Path | None) -> AdapterCard:
    """The card of the adapter to start from, that of a new one where there is none. Raises ConfigurationError where it
    does not go with the settings.
    """
    if initial is None:
        return AdapterCard()
    card = read_card(initial) if _is_ours(initial) else AdapterCard(extra_residual=True)
    if card.extra_residual != config.extra_residual:
        raise ConfigurationError(
            f"initial adapter {initial}: trained with extra_residual {card.extra_residual}; set "
            "training.extra_residual to it"
        )
    if card.subject_encoder not in ("frozen", config.subject_encoder):
        raise ConfigurationError(
            f"initial adapter {initial}: trained with subject_encoder {card.subject_encoder}; set "
            "training.subject_encoder to it"
        )
    return card


def _load_initial(adapters: AdapterSet, stack: Stack, initial: Path | None) -> None:
    if initial is not None and _is_ours(initial):
        load_adapter(adapters, initial, base_fingerprint=stack.fingerprint)
    elif initial is not None:
        import_checkpoint(initial, adapters)


def _is_ours(initial: Path) -> bool:
    return (initial / files.WEIGHTS_FILE).is_file()
