"""What a training run tells Prometheus."""

from tasks.monitoring import metrics as m
from tasks.training.control import ControlState
from tasks.training.plan import FLOW, TrainingPlan


class TrainingMetrics(m.RunMetrics):
    """Of one run, from what its first worker reports."""

    def __init__(self, plan: TrainingPlan, *, run_id: str) -> None:
        super().__init__(FLOW, plan.run, run_id=run_id, model=plan.model.model)
        self._num_steps, self._batch_size = plan.num_steps, plan.config.batch_size
        self._counted: dict[str, float] = {}
        self._ready_attempt = 0
        for metric in (m.TRAIN_STEPS, m.TRAIN_SAMPLES):
            self.add(metric, 0)

    def take(self, state: ControlState, num_wanted: int) -> None:
        """The moment."""
        pulse = state.pulse
        samples = self._growth("samples", pulse.samples)
        waited_s = self._growth("waited_s", pulse.waited_s)
        self.add(m.TRAIN_SAMPLES, samples)
        self.add(m.TRAIN_STEPS, samples / self._batch_size)
        self.add_counts(
            {
                "seconds.data": waited_s,
                "seconds.step": max(0.0, self._growth("training_s", pulse.training_s) - waited_s),
            }
        )
        if state.is_ready and state.attempt > self._ready_attempt and pulse.load_s:
            self._ready_attempt = state.attempt
            self.add(m.WORKER_STARTS, state.num_workers)
            self.add_counts({"seconds.load": pulse.load_s * state.num_workers})
        losses = self._growth("losses", state.num_losses)
        self.add(m.WORKER_LOSSES, losses, reason="died")
        for name, number in (("expected", self._num_steps), ("done", pulse.step)):
            self.set(m.RUN_WORK, number, unit="steps", state=name)
        ready = state.num_workers if state.is_ready else 0
        for name, number in (("wanted", num_wanted), ("ready", ready), ("busy", ready)):
            self.set(m.WORKERS, number, state=name)
        self.set(m.TRAIN_LOSS, pulse.loss)
        self.set(m.TRAIN_GRAD_NORM, pulse.grad_norm)
        self.set(m.TRAIN_LEARNING_RATE, pulse.lr)
        self.set(m.TRAIN_CHECKPOINT_STEP, pulse.checkpoint_step)
        self.add_own_traffic()

    def _growth(self, name: str, now: float) -> float:
        """Since the last time. A new group of workers begins at nothing."""
        before = self._counted.get(name, 0.0)
        self._counted[name] = now
        return now - before if now >= before else now
