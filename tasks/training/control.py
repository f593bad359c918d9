"""What the workers of a training run tell the driver while they work, and what the driver asks of them."""

import contextlib
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.actors.records import LogLine
from tasks.training.outcome import Phase

_PERIOD_S = 0.3
_MAX_LINES = 500


@dataclass(frozen=True)
class Pulse:
    """What the first worker says of itself, a few times a second. Rates and counts are those of its own attempt."""

    phase: Phase
    step: int
    checkpoint_step: int = 0
    """Newest checkpoint that is stored."""
    loss: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    samples: int = 0
    training_s: float = 0.0
    """Spent in train steps and in waiting for data."""
    waited_s: float = 0.0
    """Of it, waiting for data."""
    load_s: float = 0.0
    """Spent in loading before the first step."""


@dataclass(frozen=True)
class ControlState:
    """A moment of the run."""

    attempt: int = 0
    """How often a group of workers has begun to load."""
    num_workers: int = 0
    is_loading: bool = False
    """Whether a group of workers has begun to load and is not ready."""
    is_ready: bool = False
    """Whether all workers of this attempt have loaded what they need."""
    pulse: Pulse = Pulse("starting", 0)
    samples: int = 0
    """Trained by all attempts, what a loss took away included."""
    training_s: float = 0.0
    num_losses: int = 0
    """How often Ray Train gave up a group of workers."""
    num_failed_starts: int = 0
    """How many groups in a row did not even come to life."""
    num_resizes: int = 0
    """How often a group made place for one of another size."""
    reason: str = ""
    """Why the last group was given up."""
    error: Exception | None = None
    """What ends the run for good: trying again would end the same way."""
    controller: Any = None
    """The handle of Ray Train's controller."""
    log: tuple[LogLine, ...] = field(default=(), repr=False)
    """What workers logged since the last look."""


class Control:
    """One small actor per run, on the driver's node."""

    def __init__(self) -> None:
        self._state = ControlState()
        self._log: deque[LogLine] = deque(maxlen=_MAX_LINES)
        self._stopping = False
        self._is_given_up = False
        """Whether Ray Train has done with the group of the last attempt; what its workers say until they end has been
        counted."""

    # ---- workers

    def begin(self, num_workers: int) -> int:
        """A group of workers begins to load; returns its number. Said by its first worker."""
        is_resizing = self._state.pulse.phase == "resizing"
        self._close_attempt("resizing" if is_resizing else "restarting")
        attempt = self._state.attempt + 1
        self._state = replace(self._state, attempt=attempt, num_workers=num_workers, is_loading=True, is_ready=False)
        self._is_given_up = False
        return attempt

    def ready(self, attempt: int) -> None:
        """All workers of the group have loaded what they need."""
        if attempt == self._state.attempt:
            self._state = replace(self._state, is_loading=False, is_ready=True, num_failed_starts=0)

    def tell(self, attempt: int, pulse: Pulse, log: tuple[LogLine, ...] = ()) -> bool:
        """Takes the first worker's state; returns whether the group should stop."""
        self._log.extend(log)
        if attempt == self._state.attempt and not self._is_given_up:
            self._state = replace(self._state, pulse=pulse)
        return self._stopping

    def log(self, lines: tuple[LogLine, ...]) -> None:
        """Takes what another worker logged."""
        self._log.extend(lines)

    def fail(self, error: Exception) -> None:
        """A worker has met what no other try would change; the first such error counts."""
        if self._state.error is None:
            self._state = replace(self._state, error=error)

    # ---- Ray Train's controller

    def controller_started(self, controller: Any) -> None:
        """Its handle, by which the driver can end it."""
        self._state = replace(self._state, controller=controller)

    def group_lost(self, reason: str, *, was_started: bool, is_waiting: bool) -> None:
        """Ray Train gives up a group of workers and will start another one.

        was_started: its workers had come to life. is_waiting: they did not because there was no place for them.
        """
        self._close_attempt()
        self._is_given_up = True
        self._state = replace(
            self._state,
            is_loading=False,
            is_ready=False,
            reason=reason,
            num_losses=self._state.num_losses + was_started,
            num_failed_starts=self._state.num_failed_starts + (not was_started and not is_waiting),
        )

    def group_resized(self, num_workers: int) -> None:
        """Ray Train ends the group to start one of so many workers. Nothing was lost, but steps may be made again."""
        before = self._state.num_workers
        self._close_attempt("resizing")
        self._is_given_up = True
        self._state = replace(
            self._state,
            is_loading=False,
            is_ready=False,
            reason=f"there is place for {num_workers} workers instead of {before}",
            num_resizes=self._state.num_resizes + 1,
        )

    # ---- the driver

    def stop(self) -> None:
        """Workers should store a checkpoint and return."""
        self._stopping = True

    def state(self) -> ControlState:
        """The moment, with what was logged since the last look."""
        lines = tuple(self._log)
        self._log.clear()
        return replace(self._state, log=lines)

    def _close_attempt(self, phase: Phase = "restarting") -> None:
        """What the group did counts on, although its successor begins at nothing."""
        pulse = self._state.pulse
        if not self._state.attempt:
            phase = "starting"
        self._state = replace(
            self._state,
            samples=self._state.samples + pulse.samples,
            training_s=self._state.training_s + pulse.training_s,
            pulse=replace(pulse, phase=phase, samples=0, training_s=0.0, waited_s=0.0),
        )


class ControlWatch:
    """The actor and its latest state, for the driver; never waits for it."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = ray.get_runtime_context().get_node_id()
        self.actor: Any = (
            ray.remote(Control)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote()
        )
        self.state = ControlState()
        self._asked: Any = None
        self._asked_s = 0.0

    def look(self) -> bool:
        """Takes the answer to the last question, if there is one, and asks again; returns whether there was one."""
        import ray

        answered = False
        if self._asked is not None:
            if not ray.wait([self._asked], timeout=0)[0]:
                return False
            with contextlib.suppress(ray.exceptions.RayError):
                self._take(ray.get(self._asked))
                answered = True
            self._asked = None
        if time.monotonic() - self._asked_s >= _PERIOD_S:
            self._asked_s = time.monotonic()
            self._asked = self.actor.state.remote()
        return answered

    def look_again(self, timeout_s: float) -> None:
        """Waits for the state as it is now, as after the end of the workers."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            self._take(ray.get(self.actor.state.remote(), timeout=timeout_s))

    def wait_for_controller(self, timeout_s: float) -> None:
        """Until Ray Train's controller has said who it is. It needs seconds to start, and cannot be ended before."""
        deadline = time.monotonic() + timeout_s
        while self.state.controller is None and (left := deadline - time.monotonic()) > 0:
            self.look_again(left)
            time.sleep(_PERIOD_S)

    def _take(self, state: ControlState) -> None:
        """An actor that was restarted has forgotten Ray Train's controller, by which everything can be ended."""
        self.state = replace(state, controller=state.controller or self.state.controller)

    def stop(self) -> None:
        """Asks the workers to stop; said again on every call, because a restarted actor has forgotten it."""
        self.actor.stop.remote()

    def close(self) -> None:
        """Ends the actor."""
        import ray

        with contextlib.suppress(Exception):
            ray.kill(self.actor)
