"""Batches ahead of the train step: reading, unpacking and moving to the device off the training thread."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor

from ezigen.training.batch import TrainBatch
from tasks.training.data import SampleRef, TrainingSet


class BatchLoader:
    """A rank's micro-batches, step by step: iterate over it, and close it in the end (or use `with`).

    Gives the global batches that follow `first_step`, ... , `last_step` - 1 finished steps, so a run that resumes after
    k steps passes first_step = k and goes on where it stopped, on any number of ranks. Up to `prefetch` steps are kept
    ready or are being read by `num_threads` threads, beside the one that was given last: memory for prefetch + 2 steps.

    Raises ConfigurationError if there are more ranks than samples in a batch. What goes wrong in reading is raised by
    the step that it belongs to, after those before it; nothing comes after it.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        first_step: int,
        last_step: int,
        rank: int = 0,
        num_ranks: int = 1,
        device: torch.device | str = "cpu",
        *,
        num_threads: int = 2,
        prefetch: int = 2,
    ) -> None:
        self._training_set, self._device = training_set, torch.device(device)
        self._rank, self._num_ranks = rank, num_ranks
        self._steps = iter(range(first_step, last_step))
        self._streams = threading.local()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-batches")
        self._coming: deque[list[Future[TrainBatch]]] = deque()
        self.waited_s = 0.0
        """How long the caller has waited for data so far: next to nothing where the device is what limits the speed."""
        try:
            for _ in range(max(1, prefetch)):
                self._submit_next()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[list[TrainBatch]]:
        return self

    def __next__(self) -> list[TrainBatch]:
        """The next step's micro-batches, on the device."""
        if not self._coming:
            raise StopIteration
        futures = self._coming.popleft()
        self._submit_next()
        started_s = time.perf_counter()
        try:
            batches = [future.result() for future in futures]
        except BaseException:
            self.close()
            raise
        self.waited_s += time.perf_counter() - started_s
        for batch in batches:
            self._hand_over(batch)
        return batches

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads, once they have finished what they are reading, and drops what was prepared."""
        self._steps = iter(range(0))
        self._coming.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit_next(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            refs = self._training_set.step_refs(step, self._rank, self._num_ranks)
            self._coming.append([self._pool.submit(self._read, part) for part in refs])

    def _read(self, refs: list[SampleRef]) -> TrainBatch:
        with self._stream():
            batch = self._training_set.read_batch(refs, self._device)
            if self._device.type == "cuda":
                # Whoever gets the batch may use it at once, on any stream.
                torch.cuda.current_stream(self._device).synchronize()
        return batch

    def _stream(self) -> AbstractContextManager[object]:
        """On a GPU every thread has a stream of its own, so that copies go on beside the train step."""
        if self._device.type != "cuda":
            return nullcontext()
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._streams.own)

    def _hand_over(self, batch: TrainBatch) -> None:
        """Tells the allocator that the caller's stream uses the batch: its memory was taken on a thread's stream."""
        if self._device.type != "cuda":
            return
        stream = torch.cuda.current_stream(self._device)
        for tensor in _tensors(batch):
            if tensor.is_cuda:
                tensor.record_stream(stream)


def _tensors(batch: TrainBatch) -> Iterator[Tensor]:
    for value in vars(batch).values():
        if isinstance(value, Tensor):
            yield value
    if batch.features is not None:
        yield from batch.features.tokens.values()
        yield from (batch.features.mask or {}).values()
