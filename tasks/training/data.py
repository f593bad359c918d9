"""What a run is trained on: the samples of a feature store, in the run's order, as batches."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ezigen.config import ConfigurationError, SourceConfig, TrainingConfig
from ezigen.models import TextCondition
from ezigen.subject import SubjectFeatures
from ezigen.training.batch import SOURCES, TrainBatch
from ezigen.training.order import SampleOrder, batch_share, choose, permutation, rank_share
from tasks.features import FeatureIdentity, FeatureStore, TargetLatent, TextBatch
from tasks.storage import Locations
from tasks.storage.keys import Words, words_to_hex
from tasks.training.samples import PairTable, Rows, Samples, hold_out, read_pair_ids, read_pairs
from tasks.training.slots import in_slots, slots_of, tokens_in_slots

HELD_OUT_POSITION = 2**62
"""Held-out samples have positions from here on: no run is as long, so none of their noise is that of a train step."""


@dataclass(frozen=True)
class SampleRef:
    """What is read for a position: the pairs whose subjects appear in one target, by their numbers in the store."""

    position: int
    source: int
    """Index into SOURCES."""
    pairs: tuple[int, ...]


class TrainingSet:
    """The samples of a feature store as a configuration uses them. Picklable: every process opens its own files.

    A sample is a target with its text and up to `max_subjects` subjects. notes: what the operator should know.
    """

    def __init__(self, store: FeatureStore, config: TrainingConfig, table: PairTable) -> None:
        """`open` is how it is made; `table`: what `read_pairs` says of the store with the configuration's seed."""
        self.store, self.config = store, config
        self.stored_features = _uses_stored_features(store, config)
        settings = _source_settings(config)
        present = [bool((table.sources == source).any()) for source in range(len(SOURCES))]
        self._weights = [one.weight if here else 0.0 for one, here in zip(settings, present, strict=True)]
        _check_sources(store, settings, self._weights)
        held = hold_out(table, config.held_out_share, [weight > 0 for weight in self._weights])
        self._table = table
        self._samples = [self._gather((table.sources == source) & ~held) for source in range(len(SOURCES))]
        self.held_out: Samples = self._gather(held)
        self._order = SampleOrder(config.seed, [len(one) for one in self._samples], self._weights)
        self._held_out_order = permutation(config.seed, 0, len(SOURCES), len(self.held_out))
        self.notes = tuple(self._find_notes(settings, present))

    @classmethod
    def open(
        cls,
        features_uri: str,
        config: TrainingConfig,
        locations: Locations | None = None,
        *,
        model_fingerprint: str | None = None,
    ) -> "TrainingSet":
        """The samples of a finished feature store, which must be of this model, if one is given.

        Raises ConfigurationError for another model's store, one without any sample of a source with a weight, or one
        that does not hold what config.features asks for.
        """
        expected = {} if model_fingerprint is None else {"model_fingerprint": model_fingerprint}
        store = FeatureStore.open(features_uri, locations, expect=expected)
        return cls(store, config, read_pairs(store, config.seed))

    # ---- what it is

    @property
    def identity(self) -> FeatureIdentity:
        """Of the store."""
        return self.store.identity

    @cached_property
    def digest(self) -> str:
        """32 hex digits of the store's content: of the checksums of all its objects, as its manifest lists them."""
        digest = hashlib.blake2b(self.identity.digest().encode(), digest_size=16)
        for shard in self.store.shards:
            for file in shard.files:
                digest.update(f"\n{file.path}={file.rows},{file.num_bytes},{file.xxh3}".encode())
        return digest.hexdigest()

    @property
    def pairs_uri(self) -> str:
        """Where the pairs of the store were when it was written; "" if it does not say."""
        record = self.store.output.read_run()
        return "" if record is None else str(record.inputs.get("pairs_uri", ""))

    def num_samples(self, source: str | None = None) -> int:
        """Samples of a source that are trained on, 0 for one that is left out; without a source of all."""
        sizes = [len(one) if weight else 0 for one, weight in zip(self._samples, self._weights, strict=True)]
        return sum(sizes) if source is None else sizes[SOURCES.index(source)]

    def num_steps(self, config: TrainingConfig) -> int:
        """Steps of a run: as configured, or as many as take num_epochs times as many samples as there are."""
        if config.num_steps:
            return config.num_steps
        return max(1, math.ceil(config.num_epochs * self.num_samples() / config.batch_size))

    def held_out_pairs(self) -> list[str]:
        """The pair_id of every held-out pair, in stored order."""
        return read_pair_ids(self.store, np.sort(self.held_out.rows))

    # ---- what it gives

    def refs(self, positions: Iterable[int]) -> list[SampleRef]:
        """What is read for some positions of the run; of a sample with too many subjects, those that are drawn."""
        return [self._ref(position) for position in positions]

    def held_out_refs(self, numbers: Iterable[int]) -> list[SampleRef]:
        """Held-out samples by number, in an order of the seed's: the first few are spread over the store."""
        return [self._held_out_ref(number) for number in numbers]

    def step_refs(self, step: int, rank: int = 0, num_ranks: int = 1) -> list[list[SampleRef]]:
        """A rank's micro-batches of the global batch that follows `step` finished steps.

        Raises ConfigurationError if there are more ranks than samples in a batch.
        """
        share = batch_share(step, self.config.batch_size, rank, num_ranks)
        return [self.refs(part) for part in _chunks(share, self.config.micro_batch_size or len(share))]

    def read_batch(self, refs: Sequence[SampleRef], device: torch.device | str = "cpu") -> TrainBatch:
        """Reads samples; what the networks take lies on the device.

        Tokens keep the stored precision; those of fp8 cross the bus as they are stored and become fp16 on the device.
        There are as many slots as the sample with the most subjects has.
        Raises ConfigurationError, naming the sample, for what is damaged or missing; what a store answers that cannot
        be reached carries the sample's name as a note.
        """
        try:
            return self._read(refs, device)
        except (ConfigurationError, KeyError, OSError) as error:
            self._blame(refs, error)
            raise

    def held_out_batches(
        self,
        limit: int,
        rank: int = 0,
        num_ranks: int = 1,
        batch_size: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[TrainBatch]:
        """A rank's share of the first `limit` held-out samples, which are the same ones at every call.

        batch_size: samples per batch; 0: all of them.
        """
        numbers = rank_share(range(min(limit, len(self.held_out))), rank, num_ranks)
        for part in _chunks(numbers, batch_size or len(numbers)):
            yield self.read_batch(self.held_out_refs(part), device)

    # ---- which samples

    def _gather(self, chosen: npt.NDArray[np.bool_]) -> Samples:
        rows = np.flatnonzero(chosen)
        return Samples.single(rows) if self.config.max_subjects == 1 else Samples.grouped(self._table, rows)

    def _ref(self, position: int) -> SampleRef:
        source, sample = self._order.place(position)
        return self._take(position, self._samples[source].pairs(sample))

    def _held_out_ref(self, number: int) -> SampleRef:
        return self._take(HELD_OUT_POSITION + number, self.held_out.pairs(int(self._held_out_order[number])))

    def _take(self, position: int, pairs: Rows) -> SampleRef:
        drawn = pairs[choose(self.config.seed, position, len(pairs), self.config.max_subjects)]
        return SampleRef(position, int(self._table.sources[drawn[0]]), tuple(drawn.tolist()))

    def _find_notes(self, settings: Sequence[SourceConfig], present: Sequence[bool]) -> Iterator[str]:
        for name, wanted, here in zip(SOURCES, settings, present, strict=True):
            if wanted.weight and not here:
                yield f"the store has no pairs of {name}; it is left out"
        if self.config.held_out_share and not len(self.held_out):
            yield "there is only one picture or video, so none is held out and no loss is measured on held-out pairs"
        most = max(one.most_pairs for one in (*self._samples, self.held_out))
        if self.config.max_subjects > 1 and most == 1:
            yield (
                f"max_subjects is {self.config.max_subjects}, but no two pairs share their target and caption: every "
                "sample has one subject; subjects of a COCO picture share it if its pairs are built with "
                "coco_target_fit squash or pad"
            )

    # ---- reading

    def _read(self, refs: Sequence[SampleRef], device: torch.device | str) -> TrainBatch:
        table, store = self._table, self.store
        first = np.array([ref.pairs[0] for ref in refs])
        subject_ids = _ids(table.subjects, np.array([pair for ref in refs for pair in ref.pairs]))
        slots = slots_of([len(ref.pairs) for ref in refs])
        features, latents = None, None
        if self.stored_features:
            stored = store.read_subjects(subject_ids)
            names, features = stored.subject_classes, tokens_in_slots(stored.packed.to(device).unpack(), slots)
        else:
            found = store.read_subject_latents(subject_ids)
            names, latents = found.subject_classes, in_slots(found.latents, slots)
        target = store.read_targets(_ids(table.targets, first))
        text = store.read_texts(_ids(table.texts, first))
        return self._assemble(refs, slots, names, target, text, features, latents).to(device)

    def _assemble(
        self,
        refs: Sequence[SampleRef],
        slots: Tensor,
        names: Sequence[str],
        target: TargetLatent,
        text: TextBatch,
        features: SubjectFeatures | None,
        latents: Tensor | None,
    ) -> TrainBatch:
        settings, remaining = _source_settings(self.config), iter(names)
        ranges = [(settings[ref.source].min_timestep, settings[ref.source].max_timestep) for ref in refs]
        return TrainBatch(
            positions=torch.tensor([ref.position for ref in refs]),
            mean=target.mean,
            variance=target.variance,
            text=None if text.embeddings is None else TextCondition(text.embeddings, text.pooled),
            token_ids=text.token_ids,
            slots=slots,
            timesteps=torch.tensor(ranges),
            sources=torch.tensor([ref.source for ref in refs]),
            features=features,
            subject_latents=latents,
            subject_classes=tuple(tuple(next(remaining) for _ in ref.pairs) for ref in refs),
        )

    def _blame(self, refs: Sequence[SampleRef], error: Exception) -> None:
        """Finds the sample that cannot be read and names it; returns where reading one by one shows none."""
        for ref in refs:
            try:
                self._read([ref], "cpu")
            except (ConfigurationError, KeyError) as cause:
                message = cause.args[0] if cause.args else cause
                raise ConfigurationError(f"sample {self._name(ref)}: {message}") from cause
            except OSError as cause:
                cause.add_note(f"while reading the sample {self._name(ref)}")
                raise cause from error

    def _name(self, ref: SampleRef) -> str:
        try:
            return " + ".join(read_pair_ids(self.store, ref.pairs))
        except (ConfigurationError, OSError):  # the error that is being told is the one that counts
            return f"number {ref.pairs[0]:,}"


def _source_settings(config: TrainingConfig) -> tuple[SourceConfig, ...]:
    return tuple(getattr(config, name) for name in SOURCES)


def _uses_stored_features(store: FeatureStore, config: TrainingConfig) -> bool:
    """Whether tokens are read, not computed. Raises ConfigurationError if the store does not hold what that takes."""
    policy, where = store.identity.policy, store.output.root_uri
    if config.features == "stored" and policy != "features":
        raise ConfigurationError(
            f"training.features is stored, but the feature store {where} has policy {policy}: it holds subject latents "
            "and no tokens. Set training.features to recompute or auto, or write a store with policy features."
        )
    if config.features == "recompute" and policy != "latents":
        raise ConfigurationError(
            f"training.features is recompute, but the feature store {where} has policy {policy}: it holds no subject "
            "latents. Set training.features to stored or auto, or write a store with policy latents."
        )
    if config.subject_timestep == "adaptive" and policy != "latents":
        raise ConfigurationError(
            f"training.subject_timestep is adaptive, but the feature store {where} holds tokens of t_sub "
            f"{store.identity.t_sub}. Write a store with policy latents, or set training.subject_timestep to store."
        )
    if config.subject_encoder != "frozen" and policy != "latents":
        raise ConfigurationError(
            f"training.subject_encoder is {config.subject_encoder}, but the feature store {where} holds tokens of the "
            "frozen UNet. Write a store with policy latents, or set training.subject_encoder to frozen."
        )
    if not config.mask_padding and store.identity.tokens == "foreground":
        raise ConfigurationError(
            f"training.mask_padding is false, but the feature store {where} holds foreground tokens only, of which a "
            "blank picture has none. Set training.mask_padding to true, or write a store of all tokens."
        )
    return policy == "features"


def _check_sources(store: FeatureStore, settings: Sequence[SourceConfig], weights: Sequence[float]) -> None:
    """Raises ConfigurationError if nothing is left to train on."""
    if any(weights):
        return
    wanted = [name for name, one in zip(SOURCES, settings, strict=True) if one.weight]
    others = [name for name in SOURCES if name not in wanted]
    remedy = f"; training.{others[0]}.weight is 0, give it more" if others else ""
    raise ConfigurationError(
        f"the feature store {store.output.root_uri} has no pairs of {' or '.join(wanted)}, so there is nothing to "
        f"train on{remedy}; or use a store of other pairs."
    )


def _chunks(numbers: range, size: int) -> list[range]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size or 1)]


def _ids(words: Words, rows: Rows) -> list[str]:
    return words_to_hex(words[rows])
