"""One shard of a feature store, from stored pairs through the frozen networks."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from ezigen.config import FeatureConfig, StackConfig
from ezigen.models.faults import is_device_fault, is_out_of_memory
from tasks.features.identity import FeatureIdentity
from tasks.features.ownership import ShardOwnership
from tasks.features.pairs_set import PairsSet
from tasks.sharding import ShardReport
from tasks.storage import Locations, OutputFolder

if TYPE_CHECKING:
    from tasks.features.encoding import FeatureEncoder
    from tasks.features.pair_reader import Batch, PairReader
    from tasks.features.writer import FeatureShardWriter

logger = logging.getLogger(__name__)

_BROKEN_EXIT_CODE = 70


@dataclass
class FeatureWork:
    """The ShardWork of precompute_features; see `tasks.sharding.ShardWork`.

    What is stored of a picture or a text depends on it, on the model and on `config` alone, neither on its shard nor on
    what is computed beside it.
    """

    pairs: PairsSet
    output: OutputFolder
    identity: FeatureIdentity
    config: FeatureConfig
    model: StackConfig
    owned: Mapping[str, ShardOwnership] = field(repr=False)
    locations: Locations = field(default_factory=Locations)
    """How sources of targets that are stored by reference are reached."""
    num_threads: int = 1

    def open(self) -> None:
        """Loads the networks. Raises ConfigurationError if the model is not the one that was planned with."""
        import torch

        from tasks.features.encoding import FeatureEncoder
        from tasks.features.streamed_file import remove_abandoned

        remove_abandoned()
        if not torch.cuda.is_available() or self.model.device == "cpu":
            torch.set_num_threads(self.num_threads)
        started_s = time.perf_counter()
        # "auto" was decided when the run was planned: a store never mixes what two precisions say.
        model = self.model.model_copy(update={"dtype": self.identity.network_dtype})
        self._encoder = FeatureEncoder.load(model, self.identity, self.config.batch_size)
        logger.info("loaded %s in %.1f s", self.model.model, time.perf_counter() - started_s)

    def make(self, shard: str) -> ShardReport:
        """Computes and stores one shard. Its report counts subjects.

        Raises DamagedPairs if a stored picture is not the one that was written, ReferenceLost if one that pairs only
        refer to is gone. Ends the process if its device has failed: nothing can be computed in it any more.
        """
        from tasks.features.writer import FeatureShardWriter

        writer = FeatureShardWriter(self.output, self.identity, shard, row_group_mib=self.config.row_group_mib)
        with writer, ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as decoders:
            reader = self._make_reader(shard, decoders)
            try:
                self._encode_all(reader, writer)
            except Exception as error:
                if is_device_fault(error):
                    _leave(error)
                if is_out_of_memory(error):
                    message = (
                        f"no memory to encode {self.config.batch_size} pictures at once; lower features.batch_size"
                    )
                    raise MemoryError(f"{message} ({error})") from error
                raise
            files = writer.close(reader.samples)
        owned = self.owned[shard]
        return ShardReport(shard, owned.counts["subjects"], files=files.files, counts={"pairs": files.rows})

    def _make_reader(self, shard: str, decoders: ThreadPoolExecutor) -> "PairReader":
        from tasks.features.pair_reader import PairReader

        return PairReader(
            pairs=self.pairs,
            shard=shard,
            owned=self.owned[shard],
            batch_size=self.config.batch_size,
            decoders=decoders,
            with_masks=self.identity.tokens == "foreground",
            locations=self.locations,
        )

    def _encode_all(self, reader: "PairReader", writer: "FeatureShardWriter") -> None:
        """Reading, computing and writing go on at the same time, each one batch ahead of the next."""
        from tasks.features.read_ahead import read_ahead

        pending: Future[None] | None = None
        with (
            ThreadPoolExecutor(1, thread_name_prefix="write") as writing,
            closing(read_ahead(reader.batches())) as ahead,
        ):
            for batch in ahead:
                store = _encode(self._encoder, batch, writer)
                if pending is not None:
                    pending.result()
                pending = writing.submit(store)
            if pending is not None:
                pending.result()


def _encode(encoder: "FeatureEncoder", batch: "Batch", writer: "FeatureShardWriter") -> Callable[[], None]:
    """Computes a batch; what is returned stores it."""
    from tasks.features.pair_reader import Subjects, Targets

    if isinstance(batch, Targets):
        mean, variance = encoder.encode_targets(batch.pictures)
        return partial(writer.add_targets, batch.ids, mean, variance)
    if not isinstance(batch, Subjects):
        return partial(writer.add_texts, batch.ids, batch.texts, *encoder.encode_texts(batch.texts))
    if encoder.identity.policy == "latents":
        latents = encoder.encode_subject_latents(batch.pictures)
        return partial(writer.add_subject_latents, batch.ids, batch.subject_classes, latents)
    features = encoder.encode_subjects(batch.pictures, batch.subject_classes)
    return partial(writer.add_subjects, batch.ids, batch.subject_classes, features, batch.masks)


def _leave(error: Exception) -> NoReturn:
    """Ends the process; Ray starts another one, which makes the shard again."""
    logger.error("the device of this worker failed; it is replaced", exc_info=error)
    logging.shutdown()
    os._exit(_BROKEN_EXIT_CODE)
