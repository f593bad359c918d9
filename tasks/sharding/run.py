"""Shards through Ray Data: one row of a dataset is one shard, one actor makes one shard at a time."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ezigen.config import ConfigurationError, RayConfig
from tasks.actors.records import tell_worker_record
from tasks.cluster import Cluster, ClusterLost, WorkerPlan, connect, plan_workers
from tasks.cluster.planner import PoolFailed
from tasks.sharding.board import Board, BoardState
from tasks.sharding.metrics import ShardMetrics
from tasks.sharding.report import ShardReport
from tasks.sharding.work import ShardFailure, ShardsFailed, ShardWork

logger = logging.getLogger(__name__)

_TICK_S = 0.2
_BOARD_PERIOD_S = 0.5
_LOSS_WAIT_S = 5.0
"""When Ray Data fails, the reason is most often that a process of Ray has just died; it shows after a moment."""


@dataclass(frozen=True)
class _Calls:
    """What the engine calls, all in the driver's thread."""

    check: Callable[[], None]
    on_report: Callable[[ShardReport], None]
    tick: Callable[[int, int], None]


def run_shards(  # noqa: PLR0913 - all but three have defaults
    work: ShardWork,
    shards: Sequence[str],
    *,
    cluster: RayConfig,
    on_report: Callable[[ShardReport], None],
    check: Callable[[], None] = lambda: None,
    tick: Callable[[int, int], None] = lambda _in_flight, _num_workers: None,
    stop: threading.Event | None = None,
    worker_memory_bytes: int = 0,
    connected: Cluster | None = None,
    metrics: ShardMetrics | None = None,
) -> None:
    """Makes every shard on Ray, as many at a time as there are workers. No shards: no Ray.

    `check` is called several times a second and may raise to end the run at once, as a lost lease does. `tick` gets the
    shards in flight and the workers that are ready. Setting `stop` ends the intake: what is in flight may finish within
    `cluster.grace_period_s`. `on_report` is called in this thread, in the order in which shards finish.
    `connected` is a Ray that the caller keeps for several calls; without one, Ray is started or joined for this call.
    `metrics` are those of the caller's run; without any, nothing is told to Prometheus.

    Raises ShardsFailed, naming them, at the end of a run in which shards raised or killed their worker three times;
    ConfigurationError that `open` raised; PoolFailed when no worker can be started; ClusterLost when Ray itself is
    gone.
    """
    stop = stop or threading.Event()
    check()
    if not shards or stop.is_set():
        return
    with connect(cluster) if connected is None else contextlib.nullcontext(connected) as ray_cluster:
        workers = plan_workers(cluster, ray_cluster.nodes, worker_memory_bytes)
        logger.info("%d shards for %d workers on %s", len(shards), workers.count, workers.device)
        run = _Execution(cluster, ray_cluster, _Calls(check, on_report, tick), stop, metrics)
        with metrics.working(workers.device) if metrics else contextlib.nullcontext():
            run.execute(work, shards, workers)


class _Execution:
    """One run while it goes on."""

    def __init__(
        self, config: RayConfig, cluster: Cluster, calls: _Calls, stop: threading.Event, metrics: ShardMetrics | None
    ) -> None:
        self._config, self._cluster, self._calls, self._stop = config, cluster, calls, stop
        self._metrics = metrics
        self._num_workers = 0
        self._board = _BoardWatch()
        self._failures: list[ShardFailure] = []
        self._unanswered: set[str] = set()
        self._started_s = time.monotonic()
        self._deadline_s: float | None = None
        self._ended = False

    def execute(self, work: ShardWork, shards: Sequence[str], workers: WorkerPlan) -> None:
        """From the first worker to the last answer; every worker is gone when this is over."""
        from tasks.sharding.stream import AnswerStream

        self._unanswered = set(shards)
        self._num_workers = min(workers.count, len(shards))
        stream = AnswerStream(work, shards, workers, self._board.actor)
        try:
            while not (self._ended or self._is_drained() or self._is_late()):
                self._step(stream)
        finally:
            stream.close()
            self._board.close()
        self._tell(force=True)
        if not self._stop.is_set():
            self._failures += [ShardFailure(shard, "Ray gave no answer.") for shard in sorted(self._unanswered)]
        if self._failures:
            raise ShardsFailed(sorted(self._failures, key=lambda failure: failure.shard))

    def _step(self, stream: Any) -> None:
        self._calls.check()
        self._cluster.check()
        try:
            for answer in stream.take(_TICK_S):
                self._receive(answer)
        except (ConfigurationError, PoolFailed):
            raise
        except Exception as error:  # noqa: BLE001 - whatever Ray Data raises: workers answer, they do not raise
            self._explain(error)
        self._board.look()
        self._obey_stop()
        self._check_start()
        self._calls.tick(len(self._board.state.running), self._board.state.num_ready)
        self._tell()

    def _tell(self, *, force: bool = False) -> None:
        if self._metrics is not None:
            state = self._board.state
            self._metrics.tick(self._num_workers, state.num_ready, len(state.running), state.num_deaths, force=force)

    def _receive(self, answer: Any) -> None:
        if answer is None:
            self._ended = True
            return
        for line in answer.log:
            tell_worker_record(line)
        if self._metrics is not None:
            self._metrics.worker_counted(answer.counts)
        self._unanswered.discard(answer.shard)
        if answer.ending == "misconfigured":
            raise ConfigurationError(answer.message)
        if answer.ending == "unfit":
            raise PoolFailed(f"no worker can be started: {answer.message}")
        if answer.ending in ("failed", "died"):
            logger.warning("shard %s: %s", answer.shard, answer.message)
            self._failures.append(ShardFailure(answer.shard, answer.message, answer.ending == "died"))
        elif answer.report is not None:
            self._calls.on_report(answer.report)
            if self._metrics is not None:
                self._metrics.shard_made(answer.report)

    def _explain(self, error: Exception) -> None:
        """Ray Data has failed; while the run is being stopped that is only a pity."""
        if self._stop.is_set():
            logger.warning("Ray ended before the work in flight did")
            self._ended = True
            return
        deadline = time.monotonic() + _LOSS_WAIT_S
        while time.monotonic() < deadline and self._cluster.vital_processes:
            self._cluster.check()
            time.sleep(_TICK_S)
        lines = str(error).strip().splitlines() or [""]
        if "creation task" in lines[0]:  # the worker's class could not even be made, as where a module is missing
            raise PoolFailed(f"no worker can be started: {lines[-1][:300]}") from error
        raise ClusterLost(f"Ray Data gave up ({type(error).__name__}: {lines[0][:300]})") from error

    # ---- stopping and starting

    def _obey_stop(self) -> None:
        if not self._stop.is_set():
            return
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + self._config.grace_period_s
        self._board.stop()

    def _is_drained(self) -> bool:
        """Whether the run was stopped and the answer to every shard that was begun has come."""
        begun = self._board.state.begun
        return begun is not None and not self._unanswered & begun

    def _is_late(self) -> bool:
        if self._deadline_s is None or time.monotonic() < self._deadline_s:
            return False
        logger.warning("ending %d shards that did not finish in time", len(self._board.state.running))
        return True

    def _check_start(self) -> None:
        """Raises PoolFailed if no worker was ever ready and the time for that is over."""
        limit = self._config.start_timeout_s
        if not self._board.was_ready and time.monotonic() - self._started_s > limit:
            raise PoolFailed(f"no worker was ready within {limit:g} s (cluster.start_timeout_s).")


class _BoardWatch:
    """The board's actor, on the driver's node, and its latest state; never waits for it."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = ray.get_runtime_context().get_node_id()
        self.actor: Any = (
            ray.remote(Board)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
            )
            .remote()
        )
        self.state = BoardState(0, (), 0)
        self.was_ready = False
        self._asked: Any = None
        self._asked_s = 0.0

    def look(self) -> None:
        """Takes the answer to the last question, if there is one, and asks again."""
        import ray

        if self._asked is not None:
            if not ray.wait([self._asked], timeout=0)[0]:
                return
            with contextlib.suppress(ray.exceptions.RayError):
                self.state = ray.get(self._asked)
                self.was_ready |= self.state.num_ready > 0
            self._asked = None
        if time.monotonic() - self._asked_s >= _BOARD_PERIOD_S:
            self._asked_s = time.monotonic()
            self._asked = self.actor.state.remote()

    def stop(self) -> None:
        """No worker begins another shard. Said again on every call, because a restarted board has forgotten it."""
        self.actor.stop.remote()

    def close(self) -> None:
        """Ends the actor."""
        import ray

        with contextlib.suppress(Exception):
            ray.kill(self.actor)
