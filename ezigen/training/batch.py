"""What one call of the networks learns from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ezigen.models import TextCondition
from ezigen.subject import SubjectFeatures

SOURCES = ("coco", "youtube_vis")
"""Data sets by their index in `TrainBatch.sources`; the names are those of TrainingConfig's fields."""


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """B samples with S subject slots each.

    Exactly one of features and subject_latents is given: stored features, or latents to compute them from.
    """

    positions: Tensor
    """(B,) int64: number of the sample in the run. All its randomness is a function of seed, position and purpose."""
    mean: Tensor
    """(B, c, h, w) fp32: mean of the target's posterior, scaled as the UNet expects latents."""
    variance: Tensor
    """(B, c, h, w) fp32: its variance, scaled by the square."""
    text: TextCondition | None
    """Stored embeddings; None: encode token_ids."""
    token_ids: Tensor
    """(B, L) int64; (B, 2 L) for Stable Diffusion XL, as `tokenize_prompts` gives them."""
    slots: Tensor
    """(B, S) bool: subjects that exist, at least one."""
    timesteps: Tensor
    """(B, 2) int64: least and greatest timestep, both included."""
    sources: Tensor
    """(B,) int64 index into SOURCES."""
    features: SubjectFeatures | None
    """The slots' tokens one after the other along the token axis, those of missing ones masked."""
    subject_latents: Tensor | None
    """(B, S, c, h, w) scaled, zeros where there is no subject."""
    subject_classes: tuple[tuple[str, ...], ...]
    """Per sample, the classes of the slots that exist, in their order."""

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device | str) -> "TrainBatch":
        """The same samples with what the networks read on a device.

        Positions, slots, timesteps and sources stay where they are, on the CPU: random numbers are made from them
        there, and asking a GPU for them would make the CPU wait for it.
        """
        return TrainBatch(
            positions=self.positions,
            mean=self.mean.to(device, non_blocking=True),
            variance=self.variance.to(device, non_blocking=True),
            text=None if self.text is None else self.text.to(device, non_blocking=True),
            token_ids=self.token_ids.to(device, non_blocking=True),
            slots=self.slots,
            timesteps=self.timesteps,
            sources=self.sources,
            features=None if self.features is None else self.features.to(device),
            subject_latents=None
            if self.subject_latents is None
            else self.subject_latents.to(device, non_blocking=True),
            subject_classes=self.subject_classes,
        )

    def split(self, size: int) -> list["TrainBatch"]:
        """Batches of `size` samples, the last one of what is left; views of this one. 0: this batch alone."""
        if size <= 0 or size >= len(self):
            return [self]
        return [self._part(slice(start, start + size)) for start in range(0, len(self), size)]

    def _part(self, rows: slice) -> "TrainBatch":
        return TrainBatch(
            positions=self.positions[rows],
            mean=self.mean[rows],
            variance=self.variance[rows],
            text=None if self.text is None else self.text.select(rows),
            token_ids=self.token_ids[rows],
            slots=self.slots[rows],
            timesteps=self.timesteps[rows],
            sources=self.sources[rows],
            features=None if self.features is None else self.features.select(rows),
            subject_latents=None if self.subject_latents is None else self.subject_latents[rows],
            subject_classes=self.subject_classes[rows],
        )
