"""Pictures and texts through the frozen networks, in calls of one size."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ezigen.config import ConfigurationError, StackConfig
from ezigen.models import (
    Stack,
    encode_pictures,
    encode_posterior,
    encode_prompts,
    load_stack,
    tokenize_prompts,
)
from ezigen.subject import SubjectEncoder, SubjectFeatures
from tasks.features.identity import FeatureIdentity

T = TypeVar("T")


class FeatureEncoder:
    """What a store of this identity holds of pictures (3, H, W) in [-1, 1] and of texts, up to `num_slots` at a time.

    Every call of a network is filled up to `num_slots` by repeating what there is, so that kernels are the same and a
    result's bits depend neither on its mates nor on their number.
    """

    def __init__(self, stack: Stack, identity: FeatureIdentity, num_slots: int) -> None:
        self.identity = identity
        self._stack, self._num_slots = stack, num_slots
        self._subjects = SubjectEncoder(stack)

    @classmethod
    def load(cls, model: StackConfig, identity: FeatureIdentity, num_slots: int) -> "FeatureEncoder":
        """Loads the networks. Raises ConfigurationError if they are not those of the identity."""
        stack = load_stack(model.model, device=model.device, dtype=model.dtype)
        if stack.fingerprint != identity.model_fingerprint:
            raise ConfigurationError(
                f"model {model.model} is another one where the worker runs ({stack.fingerprint}) than where the run "
                f"was planned ({identity.model_fingerprint}); put the same files there on every machine."
            )
        return cls(stack, identity, num_slots)

    def encode_subjects(self, pictures: Sequence[Tensor], subject_classes: Sequence[str]) -> SubjectFeatures:
        """Features of one picture per subject (policy features)."""
        identity = self.identity
        features = self._subjects.encode(
            self._fill_pictures(pictures),
            self._fill(subject_classes),
            t_sub=identity.t_sub,
            template=identity.template,
        )
        return features.select(slice(len(pictures)))

    def encode_subject_latents(self, pictures: Sequence[Tensor]) -> Tensor:
        """Scaled latents (B, c, h, w) of one picture per subject (policy latents)."""
        return encode_pictures(self._stack, self._fill_pictures(pictures))[: len(pictures)]

    def encode_targets(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scaled mean and variance (B, c, h, w) of target pictures."""
        mean, variance = encode_posterior(self._stack, self._fill_pictures(pictures))
        return mean[: len(pictures)], variance[: len(pictures)]

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Token ids and, if the store holds them, embeddings (B, L, D) and pooled ones (B, P), if the model has any."""
        token_ids: Tensor = tokenize_prompts(self._stack, texts).input_ids
        if not self.identity.text_embeddings:
            return token_ids, None, None
        text = encode_prompts(self._stack, self._fill(texts)).select(slice(len(texts)))
        return token_ids, text.tokens, text.pooled

    def _fill_pictures(self, pictures: Sequence[Tensor]) -> Tensor:
        return torch.stack(self._fill(pictures))

    def _fill(self, items: Sequence[T]) -> list[T]:
        return [items[slot % len(items)] for slot in range(max(len(items), self._num_slots))]
