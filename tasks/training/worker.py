"""What runs in every worker of a training run: steps, checkpoints, measurements, the final weights."""

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ezigen.config import ConfigurationError, MonitoringConfig
from ezigen.training import StepReport, TrainingDiverged
from tasks.actors.records import LogBuffer
from tasks.cluster.environment import SecretVariables
from tasks.storage import Locations, OutputFolder
from tasks.training.checkpoints import Checkpoints, checkpoint_name, checkpoint_step
from tasks.training.control import Pulse
from tasks.training.log import RunLog
from tasks.training.measurements import measured_steps, remove_measurements_after
from tasks.training.outcome import Phase
from tasks.training.plan import FINAL, TrainingPlan, is_finished
from tasks.training.scratch import scratch_folder

if TYPE_CHECKING:
    from ezigen.adapters import AdapterCard
    from tasks.training.data import TrainingSet
    from tasks.training.validation import Part, Validator

logger = logging.getLogger(__name__)

LOSS_STEPS = 100
"""Steps whose mean is called the loss of a run: one step's says little."""

_TELL_PERIOD_S = 0.25
_PREEMPTION_WAIT_S = 10.0
_CONSULT_PERIOD_S = 5.0
"""Ray looks for nodes that are taken away this often; asking it more often would tell nothing new, and asking is a
barrier of some milliseconds."""


@dataclass(frozen=True)
class TrainingWork:
    """What Ray Train calls in every worker. Picklable; opens nothing before it is called.

    What trying again would not change (a wrong configuration, a loss that is not finite) goes to the control actor, and
    the worker returns as if all were well; every other exception lets Ray Train start the workers again.
    """

    plan: TrainingPlan
    output: OutputFolder
    monitoring: MonitoringConfig
    locations: Locations
    device: Literal["cpu", "cuda"]
    num_threads: int
    control: Any
    secrets: SecretVariables = field(default_factory=SecretVariables.of_process)

    def __call__(self) -> None:
        """One worker's life, from loading to its last step."""
        import ray

        self.secrets.apply()
        try:
            with scratch_folder() as scratch:
                _Worker(self, scratch).run()
        except (ConfigurationError, TrainingDiverged) as error:
            logger.warning("%s", error)
            ray.get(self.control.fail.remote(error.with_traceback(None)))


class _Worker:
    """One worker of a group while it lives."""

    def __init__(self, work: TrainingWork, scratch: Path) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.num_ranks = context.get_world_rank(), context.get_world_size()
        self.work, self.plan = work, work.plan
        self._voice = _Voice(work.control, self.rank)
        self._scratch = scratch
        self._checkpoints = Checkpoints(work.output)
        self._log = RunLog(work.output)
        self._upload = _Upload(self._checkpoints)
        self._losses: deque[float] = deque(maxlen=LOSS_STEPS)
        self._saved_step = self._resumed_step = 0
        self._samples, self._training_s = 0, 0.0
        self._waited_s = self._load_s = 0.0
        self._doomed: frozenset[str] = frozenset()
        self._consulted_s = time.monotonic()
        self._is_stopping = False
        self._made_validator: Validator | None = None

    def run(self) -> None:
        """Loads, goes on after the newest checkpoint, and ends with the final weights unless it is stopped."""
        import ray.train.collective

        self._voice.begin(self.num_ranks)
        self._open()
        ray.train.collective.barrier()
        self._voice.ready()
        self._tell("training")
        try:
            self._train()
            if not self._is_stopping:
                self._finish()
        except TrainingDiverged:
            if self.rank == 0:
                self._log.flush()  # the way there is what one wants to see
            raise
        except Exception:
            if self._doomed:
                # The others are cut off before Ray knows that a node has gone as it was announced: an error told at
                # once would count as a failure of the run.
                time.sleep(_PREEMPTION_WAIT_S)
            raise
        finally:
            self._upload.wait()
            self._voice.pass_on_log()

    # ---- loading

    def _open(self) -> None:
        import torch

        from ezigen.models import load_stack
        from ezigen.training import Learner
        from tasks.training.data import TrainingSet

        if self.work.device == "cpu":
            torch.set_num_threads(self.work.num_threads)
        started_s = time.perf_counter()
        plan = self.plan
        # In full, because adapters begin as copies of its layers; the learner casts it to the run's precision.
        stack = load_stack(plan.model.model, device=self.work.device, dtype="fp32")
        self._data: TrainingSet = TrainingSet.open(
            plan.inputs.features_uri, plan.config, self.work.locations, model_fingerprint=stack.fingerprint
        )
        _check_unchanged(plan, self._data)
        self._learner: Learner = Learner(
            stack,
            plan.config,
            num_steps=plan.num_steps,
            t_sub=self._data.identity.t_sub,
            template=self._data.identity.template,
            initial=_find_initial(plan, self.work.locations),
            base_model=plan.model.model,
        )
        self._stack = self._learner.stack
        self._resume()
        self._load_s = time.perf_counter() - started_s
        logger.info(
            "worker %d of %d has loaded %s in %.1f s and goes on after step %d",
            self.rank + 1,
            self.num_ranks,
            plan.model.model,
            self._load_s,
            self._learner.step,
        )

    def _resume(self) -> None:
        """Goes on after the newest checkpoint; whatever lies beyond it is taken back.

        Ray Train counts a checkpoint only after it has polled every worker, which a loss may come before, so one that
        is complete in the store counts, too: nothing that `checkpoint_step` has promised is made again. Until the run
        tidies up, such a checkpoint is one folder more than monitoring.num_checkpoints.
        """
        step = self._newest_step()
        if step:
            with self._checkpoints.open(step, self._scratch) as folder:
                self._learner.load(folder)
        self._saved_step = self._resumed_step = self._learner.step
        if self.rank == 0:
            # Checkpoints first: one that counts has its whole log.
            self._checkpoints.remove_after(self._saved_step)
            self._log.remove_after(self._saved_step)
            remove_measurements_after(self.work.output, self._saved_step)

    def _newest_step(self) -> int:
        """Of the newest checkpoint, as the first worker finds it, in all of them; 0 if there is none.

        The one that Ray Train knows is taken also where it is damaged, and then refused by name.
        """
        import ray.train
        import ray.train.collective

        newest = None
        if self.rank == 0:
            known = ray.train.get_checkpoint()
            counted = None if known is None else checkpoint_step(Path(known.path).name)
            newest = max([counted or 0, *(found.step for found in self._checkpoints.find())])
        return int(ray.train.collective.broadcast_from_rank_zero(newest) or 0)

    # ---- training

    def _train(self) -> None:
        from tasks.training.loader import BatchLoader

        self._measure_if_due()
        first, last = self._learner.step, self.plan.num_steps
        threads = max(1, self.work.num_threads)
        with BatchLoader(
            self._data, first, last, self.rank, self.num_ranks, self._stack.device, num_threads=threads
        ) as batches:
            for _ in range(first, last):
                self._take_step(batches)
                if self._is_stopping:
                    break
            logger.info(
                "worker %d waited for data %.1f of %.1f s of training",
                self.rank + 1,
                self._waited_s,
                self._training_s,
            )

    def _take_step(self, batches: Iterator[Any]) -> None:
        started_s = time.perf_counter()
        batch = next(batches)
        self._waited_s += time.perf_counter() - started_s
        report = self._learner.train_step(batch, num_samples=self.plan.config.batch_size, flag=self._wants_to_consult())
        self._training_s += time.perf_counter() - started_s
        self._samples += report.samples
        self._losses.append(report.loss)
        self._log.add(report)
        self._tell("training", report)
        is_doomed = self._consult() if report.flag else False
        is_due = report.step % self.work.monitoring.checkpoint_every == 0 or report.step == self.plan.num_steps
        if is_due or is_doomed or self._is_stopping:
            self._save()
        if not self._is_stopping:
            self._measure_if_due()

    def _wants_to_consult(self) -> bool:
        """The first worker alone decides when all of them meet, and they learn of it in the same step."""
        if self.rank:
            return False
        return self._voice.is_stopping or time.monotonic() - self._consulted_s > _CONSULT_PERIOD_S

    def _consult(self) -> bool:
        """All workers agree on whether to stop; returns whether a node is about to be taken away, told once each."""
        import ray.train
        import ray.train.collective

        self._consulted_s = time.monotonic()
        self._is_stopping = bool(ray.train.collective.broadcast_from_rank_zero(self._voice.is_stopping))
        notice = ray.train.get_preemption_info()
        doomed = frozenset(notice.preempted_node_ids) if notice else frozenset()
        is_new = bool(doomed - self._doomed)
        self._doomed |= doomed
        if is_new and self.rank == 0:
            logger.warning("nodes are about to be taken away (%s); storing a checkpoint", ", ".join(sorted(doomed)))
        self._voice.pass_on_log()
        return is_new

    # ---- what is stored

    def _save(self) -> None:
        """Stores this step's checkpoint in the background, unless it is stored; waits for the one before it."""
        import ray.train

        step = self._learner.step
        if step == self._saved_step:
            return
        checkpoint = None
        if self.rank == 0:
            self._upload.wait()
            folder = self._scratch / f"save-{step}"
            self._learner.save(folder)
            self._log.flush()  # before the checkpoint counts
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        with self._upload.handed_over() if checkpoint else contextlib.nullcontext():
            ray.train.report(
                {"step": step},
                checkpoint=checkpoint,
                checkpoint_dir_name=checkpoint_name(step),
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=self._upload,
            )
        self._saved_step = step

    def _measure_if_due(self) -> None:
        """Measures this step if that is wanted and has not been done; a run that resumes makes up for it."""
        step, every = self._learner.step, self.work.monitoring.validate_every
        is_last = step == self.plan.num_steps
        if not step or not (is_last or (every and step % every == 0)):
            return
        if not self._agree(lambda: step not in measured_steps(self.work.output)):
            return
        self._tell("ending" if is_last else "measuring")
        part = self._make_validator().measure(self.rank, self.num_ranks)
        parts = self._gather(part)
        if self.rank == 0:
            self._store_measurement(parts)
        self._tell("training")

    def _store_measurement(self, parts: "list[Part]") -> None:
        from tasks.training.validation import write_measurement

        measurement = self._make_validator().combine(parts)
        self._log.add_measurement(measurement.step, measurement.numbers(), measurement.sheet)
        write_measurement(self.work.output, measurement)
        logger.info("%s", measurement.describe())

    def _make_validator(self) -> "Validator":
        from tasks.training.validation import Validator

        if self._made_validator is None:
            self._made_validator = Validator(
                self._learner,
                self._data,
                self.work.monitoring,
                model=self.plan.model,
                config=self.plan.config,
                locations=self.work.locations,
                pairs_uri=self.plan.pairs_uri,
            )
        return self._made_validator

    def _finish(self) -> None:
        """The last checkpoint, the last measurement, the final weights; what is there already is not made again."""
        self._tell("ending")
        self._save()
        self._measure_if_due()
        if self.rank == 0:
            self._upload.wait()
            if not is_finished(self.work.output):
                self._store_final()
        self._tell("ending", force=True)

    def _store_final(self) -> None:
        from ezigen.adapters.card import CARD_FILE, WEIGHTS_FILE

        folder = self._scratch / FINAL
        self._learner.save_adapter(folder, make_card(self.plan))
        for name in (WEIGHTS_FILE, CARD_FILE):
            self.work.output.write(f"{FINAL}/{name}", (folder / name).read_bytes())

    def _gather(self, part: "Part") -> "list[Part]":
        """The parts of all workers, in every one of them."""
        import torch.distributed

        if self.num_ranks == 1:
            return [part]
        parts: list[Any] = [None] * self.num_ranks
        torch.distributed.all_gather_object(parts, part)
        return parts

    def _agree(self, decide: Callable[[], bool]) -> bool:
        """What the first worker decides, in all of them."""
        import ray.train.collective

        return bool(ray.train.collective.broadcast_from_rank_zero(decide() if self.rank == 0 else None))

    def _tell(self, phase: Phase, report: StepReport | None = None, *, force: bool = False) -> None:
        pulse = Pulse(
            phase=phase,
            step=self._learner.step,
            checkpoint_step=self._upload.stored_step or self._resumed_step,
            loss=math.fsum(self._losses) / len(self._losses) if self._losses else None,
            grad_norm=report.grad_norm if report else None,
            lr=report.lr if report else None,
            samples=self._samples,
            training_s=self._training_s,
            waited_s=self._waited_s,
            load_s=self._load_s,
        )
        self._voice.tell(pulse, force=force)


class _Voice:
    """A worker's line to the control actor. Training never waits for it."""

    def __init__(self, control: Any, rank: int) -> None:
        self.is_stopping = False
        """Whether the driver has asked the workers to stop; only the first worker is told."""
        self._control, self._rank = control, rank
        self._attempt = 0
        self._buffer = LogBuffer(f"rank-{rank}")
        self._buffer.attach()
        self._asked: Any = None
        self._asked_s = 0.0

    def begin(self, num_ranks: int) -> None:
        """The first worker says that the group begins to load."""
        import ray

        if self._rank == 0:
            self._attempt = ray.get(self._control.begin.remote(num_ranks))

    def ready(self) -> None:
        """The first worker says that all have loaded."""
        if self._rank == 0:
            self._control.ready.remote(self._attempt)

    def tell(self, pulse: Pulse, *, force: bool = False) -> None:
        """The first worker says how far it is, at most four times a second, and learns whether to stop."""
        import ray

        if self._rank:
            return
        if self._asked is not None:
            if not force and not ray.wait([self._asked], timeout=0)[0]:
                return
            with contextlib.suppress(ray.exceptions.RayError):
                self.is_stopping |= ray.get(self._asked)
            self._asked = None
        now = time.monotonic()
        if force or now - self._asked_s >= _TELL_PERIOD_S:
            self._asked_s = now
            self._asked = self._control.tell.remote(self._attempt, pulse, self._buffer.take())

    def pass_on_log(self) -> None:
        """Sends what was logged since the last time."""
        lines = self._buffer.take()
        if lines:
            self._control.log.remote(lines)


class _Upload:
    """Stores checkpoints in Ray Train's thread for that, one at a time."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.stored_step = 0
        """Of the newest checkpoint that this worker has stored."""
        self._checkpoints = checkpoints
        self._idle = threading.Event()
        self._idle.set()

    @contextlib.contextmanager
    def handed_over(self) -> Iterator[None]:
        """Inside, one is given to Ray Train. Where that fails nobody will store it, so nobody must wait for it."""
        self._idle.clear()
        try:
            yield
        except BaseException:
            self._idle.set()
            raise

    def wait(self) -> None:
        """Until nothing is under way. What goes wrong is raised by Ray Train."""
        self._idle.wait()

    def __call__(self, checkpoint: Any, name: str) -> Any:
        """Ray Train's checkpoint_upload_fn: a local checkpoint to the stored one."""
        import ray.train

        step = checkpoint_step(name)
        if step is None:
            raise ValueError(f"{name!r} is no name of a checkpoint")
        try:
            self._checkpoints.store(step, Path(checkpoint.path))
            self.stored_step = step
        finally:
            self._idle.set()
        filesystem = ray.train.get_context().get_storage().storage_filesystem
        return ray.train.Checkpoint(self._checkpoints.path(step), filesystem)


def make_card(plan: TrainingPlan) -> "AdapterCard":
    """What the final weights say of themselves; it depends on the run's configuration alone."""
    from ezigen.adapters import AdapterCard

    config = plan.config
    facts: dict[str, str | int | float | bool] = {
        "run": plan.run,
        "steps": plan.num_steps,
        "batch_size": config.batch_size,
        "epochs": round(plan.num_epochs, 4),
        "optimizer": config.optimizer.kind,
        "lr": config.optimizer.lr,
        "seed": config.seed,
        **{f"samples_{source}": count for source, count in plan.num_samples.items()},
    }
    return AdapterCard(
        base_model=plan.model.model,
        extra_residual=config.extra_residual,
        training=facts,
        data={
            **{name: digest for name, digest in plan.fingerprints.items() if name != "model" and digest},
            "held_out": plan.num_held_out,
        },
        configuration=config.model_dump(mode="json"),
    )


def _find_initial(plan: TrainingPlan, locations: Locations) -> Path | None:
    """The adapter to start from on this machine; each machine fetches it once."""
    from tasks.adapters import local_adapter

    if not plan.initial_adapter:
        return None
    return local_adapter(plan.initial_adapter, plan.model.model, plan.inputs.adapters_uri, locations)


def _check_unchanged(plan: TrainingPlan, data: "TrainingSet") -> None:
    """The store must be the one that was planned with, on every node and after every restart."""
    if data.digest != plan.fingerprints["store"]:
        raise ConfigurationError(
            f"the feature store {plan.inputs.features_uri} is not the one that this run was planned with; plan again, "
            "which starts another run."
        )
