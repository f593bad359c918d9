"""The dataset of shards, executed by Ray Data in a thread of its own, so that the driver can watch and end it."""

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from tasks.cluster.environment import SecretVariables
from tasks.cluster.placement import WorkerPlan
from tasks.sharding.maker import Answer, ShardMaker
from tasks.sharding.work import ShardWork

_local = threading.local()
_JOIN_S = 10.0


class _Registration(ExecutionCallback):
    """Gives the stream, in whose thread it is made, the executor: the only way to end an execution from outside."""

    def before_execution_starts(self, executor: Any) -> None:
        """Called by Ray Data."""
        stream = getattr(_local, "stream", None)
        if stream is not None:
            stream.executor = executor


class AnswerStream:
    """Answers as they come. `close` kills the actors, whatever they are doing."""

    def __init__(self, work: ShardWork, shards: Sequence[str], workers: WorkerPlan, board: Any) -> None:
        self.executor: Any = None
        self._dataset = _make_dataset(work, shards, workers, board)
        self._queue: queue.SimpleQueue[Answer | Exception | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="shards", daemon=True)
        self._thread.start()

    def take(self, timeout_s: float) -> Iterator[Answer | None]:
        """What has come; waits for the first of it. None is the end. Raises what ended Ray Data."""
        try:
            item = self._queue.get(timeout=timeout_s)
            while True:
                if isinstance(item, Exception):
                    raise item
                yield item
                item = self._queue.get_nowait()
        except queue.Empty:
            return

    def close(self) -> None:
        """Ends the execution and its actors. Does nothing where Ray itself has gone."""
        self._closed = True
        if self.executor is not None:
            with contextlib.suppress(Exception):
                self.executor.shutdown(force=True)
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        _local.stream = self
        try:
            for batch in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for text in batch.column("answer").to_pylist():
                    self._queue.put(Answer.from_json(text))
        except Exception as error:  # noqa: BLE001 - it is raised again in the driver's own thread
            if not self._closed:
                self._queue.put(error)
        else:
            self._queue.put(None)
        finally:
            _local.stream = None


def _make_dataset(work: ShardWork, shards: Sequence[str], workers: WorkerPlan, board: Any) -> Any:
    """One block per shard. An actor makes one shard at a time and has the next one waiting: without it, it would idle
    for the tenth of a second that Ray Data takes to send another.

    Ray restarts dead actors and gives them their shards again, for ever; the board bounds that, and knows which of them
    had begun.
    """
    _quieten()
    count = min(workers.count, len(shards))
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map(
        ShardMaker,  # type: ignore[arg-type]
        fn_constructor_args=(work, board, SecretVariables.of_process()),
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        num_cpus=workers.num_cpus,
        num_gpus=workers.num_gpus or None,
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.enable_auto_log_stats = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a shard may take an hour
    context.issue_detectors_config.detectors = []
    # Answers are small; estimates from the usual 128 MiB would hold tasks back in a small object store.
    context.target_max_block_size = 2**20
    context.op_resource_reservation_enabled = False
    context.custom_execution_callback_classes = [_Registration]
    return dataset


def _quieten() -> None:
    """Ray Data reports to the terminal whatever its logger's level was before."""
    from ray.data._internal.logging import configure_logging

    configure_logging()
    for name in ("ray.data", "ray.anyscale.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
