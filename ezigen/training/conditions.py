"""What the UNet is told about each sample: its caption and its subjects."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor
from torch.nn import functional

from ezigen.config import ConfigurationError
from ezigen.models import Stack, TextCondition, encode_prompts, transformer_blocks
from ezigen.models.stack import encode_token_ids
from ezigen.subject import SUBJECT_PROMPT, LearnedEncoder, SubjectEncoder, SubjectFeatures
from ezigen.training.batch import TrainBatch
from ezigen.training.draws import Draws

_MAX_CACHED_CLASSES = 1024


@dataclass(frozen=True, eq=False)
class Conditions:
    """text: B captions in the stack's precision. subject: the tokens that the adapters attend to."""

    text: TextCondition
    subject: SubjectFeatures


class Conditioner:
    """Turns batches and their dropouts into conditions.

    t_sub and template are those of the feature store: recomputed features then equal stored ones. padded_slots: as
    many slots per sample always exist, missing ones filled with a blank picture (the released code); 0: missing slots
    are not attended to. adaptive: every sample's subjects are encoded at its own timestep instead (paper, Table 4).
    learned: what encodes the subjects instead of the frozen UNet; the tokens then have a gradient, where gradients are
    enabled. Adapters on the stack's UNet must be idle.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        t_sub: int,
        template: str = SUBJECT_PROMPT,
        padded_slots: int = 0,
        adaptive: bool = False,
        learned: LearnedEncoder | None = None,
    ) -> None:
        self._stack = stack
        self._learned = learned
        self._encoder = SubjectEncoder(stack, learned=learned)
        self._t_sub, self._template, self._padded_slots = t_sub, template, padded_slots
        self._adaptive = adaptive
        self._widths = {name: block.norm1.weight.shape[0] for name, block in transformer_blocks(stack.unet).items()}
        self._prompts: dict[str | None, TextCondition] = {}
        self._blank: SubjectFeatures | None = None

    def conditions(self, batch: TrainBatch, draws: Draws) -> Conditions:
        """Captions and subjects, without what the draws drop.

        Raises ConfigurationError for stored features where each sample needs those of its own timestep, or of an
        encoder that learns.
        """
        if self._learned is not None and batch.features is not None:
            raise ConfigurationError(
                f"subject_encoder {self._learned.kind}: the batch has features of the frozen UNet; use a store of "
                "latents"
            )
        if self._adaptive and batch.features is not None:
            raise ConfigurationError(
                f"subject_timestep adaptive: the batch has features of t_sub {self._t_sub}; use a store of latents"
            )
        return Conditions(self._text(batch, draws.keeps_text), self._subject(batch, draws))

    def _text(self, batch: TrainBatch, keeps: Tensor) -> TextCondition:
        text = encode_tokens(self._stack, batch.token_ids) if batch.text is None else batch.text
        text = text.to(self._stack.device, self._stack.dtype)
        if keeps.all():
            return text
        return text.where(keeps.to(self._stack.device), self._prompt(None))

    def _subject(self, batch: TrainBatch, draws: Draws) -> SubjectFeatures:
        """The slots' tokens; a sample that is not kept has none, which is not the same as tokens of zeros."""
        keeps = draws.keeps_subject
        if not keeps.any():
            return self._nothing(len(batch))
        features = batch.features if batch.features is not None else self._recompute(batch, draws)
        if self._padded_slots:
            features = self._fill_slots(features, batch.slots)
        return features if keeps.all() else features.keep(keeps)

    def _nothing(self, num_samples: int) -> SubjectFeatures:
        like = torch.empty(0, device=self._stack.device, dtype=self._stack.dtype)
        if self._learned is not None:
            # Gradients of zero, not none: every step then moves the same weights, and processes that share one agree.
            like = torch.cat([tensor.flatten()[:0] for tensor in self._learned.tensors().values()])
        return SubjectFeatures({name: like.reshape(num_samples, 0, n) for name, n in self._widths.items()})

    def _recompute(self, batch: TrainBatch, draws: Draws) -> SubjectFeatures:
        """Features of the subjects that exist and are kept; the other slots are masked."""
        if batch.subject_latents is None:
            raise ValueError("a batch has either features or subject_latents")
        slots = batch.slots.cpu()
        wanted = (slots & draws.keeps_subject.cpu()[:, None]).flatten()
        classes = list(compress(_class_per_slot(batch, slots), wanted.tolist()))
        # By number, not by mask: how many are True is known here, while a GPU would have to be asked.
        numbers = wanted.nonzero().flatten()
        latents = batch.subject_latents.flatten(0, 1)[numbers.to(batch.subject_latents.device)]
        t = torch.full((len(latents),), self._t_sub)
        if self._adaptive:
            t = draws.timesteps.cpu().repeat_interleave(slots.shape[1])[numbers]
        found = self._encode(latents, classes, t)
        return found if wanted.all() and slots.shape[1] == 1 else _spread(found, numbers, slots.shape)

    def _encode(self, latents: Tensor, classes: Sequence[str], t: Tensor) -> SubjectFeatures:
        """As SubjectEncoder at timesteps (M,), from latents (M, c, h, w) instead of pictures."""
        prompts = [self._template.replace("{subject_class}", name) for name in classes]
        text = TextCondition.cat([self._prompt(prompt) for prompt in prompts])
        return self._encoder.encode_stored(latents, text, t)

    def _prompt(self, prompt: str | None) -> TextCondition:
        """Batch 1. Each is encoded alone, so that its bits do not depend on which others came before a resume."""
        if prompt not in self._prompts:
            if len(self._prompts) >= _MAX_CACHED_CLASSES:
                self._prompts.clear()
            self._prompts[prompt] = encode_prompts(self._stack, [prompt])
        return self._prompts[prompt]

    def _fill_slots(self, features: SubjectFeatures, slots: Tensor) -> SubjectFeatures:
        """Exactly `padded_slots` slots, all attended to, with the blank picture's tokens in those that are missing."""
        num_slots, num_missing = slots.shape[1], self._padded_slots - slots.shape[1]
        blank, masks, filled = self._blank_features(), features.full_mask(), {}
        tokens: dict[str, Tensor] = {}
        for name, given in features.tokens.items():
            exists = functional.pad(slots, (0, num_missing)).to(given.device)[:, :, None]
            empty = blank.tokens[name].to(given)[:, None]
            each = _by_slot(given, num_slots, empty.shape[2], name)
            each = functional.pad(each, (0, 0, 0, 0, 0, num_missing))
            tokens[name] = torch.where(exists[..., None], each, empty).flatten(1, 2)
            mask = functional.pad(masks[name].view(len(slots), num_slots, -1), (0, 0, 0, num_missing))
            filled[name] = (mask | ~exists).flatten(1)
        complete = torch.stack([mask.all() for mask in filled.values()]).all()  # asks the device once, not per block
        return SubjectFeatures(tokens, None if complete else filled)

    def _blank_features(self) -> SubjectFeatures:
        if self._blank is not None:
            return self._blank
        white = torch.ones(1, 3, self._stack.image_size_px, self._stack.image_size_px)
        blank = self._encoder.encode(white, [""], t_sub=self._t_sub, template=self._template)
        if self._learned is None:  # one that learns sees it with other eyes at every step
            self._blank = blank
        return blank


@torch.no_grad()
def encode_tokens(stack: Stack, token_ids: Tensor) -> TextCondition:
    """Texts of stored token ids, as `encode_prompts` makes them of the prompts."""
    mask = None
    if stack.text_encoder_2 is None and getattr(stack.text_encoder.config, "use_attention_mask", False):
        ends = token_ids == stack.tokenizer.eos_token_id
        # What follows the first end is padding, whichever token pads.
        mask = (ends.cumsum(dim=1) - ends.long() == 0).long()
    return encode_token_ids(stack, token_ids, mask)


def _class_per_slot(batch: TrainBatch, slots: Tensor) -> list[str]:
    """Classes of all B * S slots, "" where there is no subject."""
    classes: list[str] = []
    for row, names in zip(slots.tolist(), batch.subject_classes, strict=True):
        remaining = iter(names)
        classes += [next(remaining) if exists else "" for exists in row]
    return classes


def _spread(found: SubjectFeatures, numbers: Tensor, slots: Sequence[int]) -> SubjectFeatures:
    """Tokens of M slots, put where they belong by their numbers (M,) among B * S; the others are masked."""
    num_samples, num_slots = slots
    tokens, mask = {}, {}
    for name, given in found.tokens.items():
        place = numbers.to(given.device)
        each = given.new_zeros(num_samples * num_slots, *given.shape[1:]).index_copy_(0, place, given)
        exists = torch.zeros(each.shape[:2], dtype=torch.bool, device=given.device).index_fill_(0, place, value=True)
        tokens[name] = each.view(num_samples, -1, given.shape[2])
        mask[name] = exists.view(num_samples, -1)
    return SubjectFeatures(tokens, mask)


def _by_slot(tokens: Tensor, num_slots: int, num_tokens: int, name: str) -> Tensor:
    """(B, S * N, C) -> (B, S, N, C)."""
    if tokens.shape[1] != num_slots * num_tokens:
        raise ConfigurationError(
            f"mask_padding false fills {num_tokens} tokens per slot in {name}, but the store's subjects have other "
            "numbers; use a store of all tokens, or mask_padding true"
        )
    return tokens.view(len(tokens), num_slots, num_tokens, tokens.shape[2])
