"""How good the adapters are on the way: loss on held-out pairs, and pictures of held-out subjects with their scores."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from PIL import Image

from ezigen.config import ItemError, ModelConfig, MonitoringConfig, StackConfig, TrainingConfig
from ezigen.images import Picture, encode_png
from ezigen.metrics import load_scorer
from ezigen.sampling import Generator, Request
from tasks.storage import Locations
from tasks.training.measurements import (
    MeasuredSample,
    Measurement,
    mean_score,
    read_measurements,
    write_measurement,
)
from tasks.training.sample_sheet import draw_samples
from tasks.training.subjects import HeldOutSubject, load_subjects

if TYPE_CHECKING:
    from ezigen.metrics import Scorer
    from ezigen.training.learner import Learner
    from tasks.training.data import TrainingSet

__all__ = ["MeasuredSample", "Measurement", "Part", "Validator", "read_measurements", "write_measurement"]

logger = logging.getLogger(__name__)

SAMPLES_AT_ONCE = 8
"""Samples that are denoised together; more would take memory that training needs."""


@dataclass(frozen=True)
class Part:
    """What one rank has measured. Plain values, so that it can go to rank 0 by any way."""

    step: int
    loss_sum: float
    num_pairs: int
    samples: tuple[MeasuredSample, ...]


@dataclass(frozen=True)
class _Wanted:
    """A sample to make; `number` is its place on the sheet and the seed of its noise."""

    number: int
    subject: HeldOutSubject
    prompt: str

    def request(self) -> Request:
        """What the sampler takes."""
        key = f"sample {self.number} ({self.subject.pair_id}, {self.prompt!r})"
        return Request(key, self.prompt, (self.subject.picture,), self.subject.subject_class, seed=self.number)


class Validator:
    """Measures a learner as often as one likes; every rank has one. Same subjects, prompts, noise and pairs each time.

    Training goes on as if nothing had been measured: no global random state, weight or flag changes.
    """

    def __init__(
        self,
        learner: "Learner",
        training_set: "TrainingSet",
        monitoring: MonitoringConfig,
        *,
        model: StackConfig,
        config: TrainingConfig,
        locations: Locations | None = None,
        pairs_uri: str = "",
    ) -> None:
        """Reads the subjects' pictures from the pairs, at `pairs_uri` or where the feature store says they were.

        Without them only the loss is measured; a warning names the location.
        """
        self._learner, self._training_set = learner, training_set
        self._monitoring, self._config = monitoring, config
        self._subjects = self._load_subjects(pairs_uri or training_set.pairs_uri, locations)
        self._model = ModelConfig(model=model.model, device=learner.stack.device.type)
        self._scorer: Scorer | None = None

    @property
    def subjects(self) -> tuple[HeldOutSubject, ...]:
        """The subjects of the sample sheet; none if the pairs are not there."""
        return self._subjects

    def measure(self, rank: int = 0, num_ranks: int = 1) -> Part:
        """The share of one rank of the held-out loss and of the samples."""
        loss_sum, num_pairs = self._measure_loss(rank, num_ranks)
        with self._learner.averaged_weights():
            samples = tuple(self._measure_samples(self._wanted()[rank::num_ranks]))
        return Part(self._learner.step, loss_sum, num_pairs, samples)

    def combine(self, parts: Sequence[Part]) -> Measurement:
        """The measurement of all ranks' parts, in any order."""
        num_pairs = sum(part.num_pairs for part in parts)
        loss = math.fsum(part.loss_sum for part in parts) / num_pairs if num_pairs else math.nan
        samples = tuple(sorted((s for part in parts for s in part.samples), key=lambda sample: sample.number))
        measurement = Measurement(
            step=parts[0].step,
            held_out_loss=loss if math.isfinite(loss) else None,
            num_pairs=num_pairs,
            clip_t=mean_score(samples, "clip_t"),
            dino=mean_score(samples, "dino"),
            samples=samples,
        )
        if not samples:
            return measurement
        return replace(measurement, sheet=draw_samples(measurement, self._subjects, self._learner.stack.image_size_px))

    # ---- loss

    def _measure_loss(self, rank: int, num_ranks: int) -> tuple[float, int]:
        limit = self._monitoring.num_loss_pairs
        if not limit:
            return 0.0, 0
        batch_size = self._config.micro_batch_size or -(-self._config.batch_size // num_ranks)
        batches = self._training_set.held_out_batches(
            limit, rank, num_ranks, batch_size, device=self._learner.stack.device
        )
        return self._learner.held_out_loss(batches)

    # ---- samples

    def _load_subjects(self, pairs_uri: str, locations: Locations | None) -> tuple[HeldOutSubject, ...]:
        wanted = self._monitoring.num_subjects if self._monitoring.prompts else 0
        if not wanted:
            return ()
        held_out = self._training_set.held_out_pairs()
        return load_subjects(pairs_uri, held_out, wanted, seed=self._config.seed, locations=locations)

    def _wanted(self) -> list[_Wanted]:
        """Every sample, subject by subject."""
        pairs = [(subject, prompt) for subject in self._subjects for prompt in self._monitoring.prompts]
        return [
            _Wanted(number, subject, prompt.replace("{subject_class}", subject.subject_class))
            for number, (subject, prompt) in enumerate(pairs)
        ]

    def _measure_samples(self, wanted: Sequence[_Wanted]) -> Iterator[MeasuredSample]:
        if not wanted:
            return
        identity = self._training_set.identity
        sampler = self._monitoring.sampler(t_sub=subject_timestep(self._config, identity.t_sub))
        generator = Generator(self._learner.stack, self._learner.adapters, None, sampler)
        for start in range(0, len(wanted), SAMPLES_AT_ONCE):
            some = wanted[start : start + SAMPLES_AT_ONCE]
            images = self._generate(generator, [one.request() for one in some])
            yield from (self._to_sample(one, image) for one, image in zip(some, images, strict=True))

    def _generate(self, generator: Generator, requests: Sequence[Request]) -> list[Image.Image | None]:
        """Images of the requests; None for one that is not finite, which bad adapters make."""
        try:
            return [sample.image for sample in generator.generate(requests)]
        except ItemError as error:
            if len(requests) == 1:
                logger.warning("%s", error)
                return [None]
        return [image for request in requests for image in self._generate(generator, [request])]

    def _to_sample(self, wanted: _Wanted, image: Image.Image | None) -> MeasuredSample:
        subject = wanted.subject
        return MeasuredSample(
            number=wanted.number,
            pair_id=subject.pair_id,
            subject_class=subject.subject_class,
            prompt=wanted.prompt,
            scores={} if image is None else self._score(image, wanted.prompt, subject.picture),
            picture=None if image is None else encode_png(image),
        )

    def _score(self, image: Image.Image, prompt: str, subject: Picture) -> dict[str, float]:
        if self._scorer is None:
            self._scorer = load_scorer(self._model)
        return self._scorer.score(image, prompt, [subject])


def subject_timestep(config: TrainingConfig, stored: int) -> int | Literal["adaptive"]:
    """The timestep at which subjects were encoded in training; an image encoder knows none, which 1 stands for."""
    if config.subject_timestep == "adaptive":
        return "adaptive"
    return 1 if config.subject_encoder in ("dino", "clip") else stored
