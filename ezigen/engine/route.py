"""Which steps an image takes, and in which lanes, under one sampler."""

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import TypeAlias

from ezigen.config import SamplerConfig
from ezigen.engine.planner import Kind, Lane, Leg
from ezigen.sampling.denoiser import Step, plan_steps
from ezigen.sampling.editing import plan_inversion

LatentSize: TypeAlias = tuple[int, int] | None
"""Of an edit; None for an image that is generated."""


class Route:
    """The steps of the two stages (paper 3.2): `sketch` from text alone, `passes` of appearance transfer.

    In mode text_only the only pass needs no subject; in full_injection there is no sketch. An edit has an `inversion`
    in place of the sketch, and `edit_passes` (paper 3.4).
    """

    def __init__(self, sampler: SamplerConfig, timesteps: Sequence[int]) -> None:
        steps = plan_steps(timesteps)
        self._sampler = sampler
        self.needs_subject = sampler.mode != "text_only"
        split = sampler.num_sketch_steps if sampler.mode in ("decoupled", "iterative") else 0
        self.sketch: tuple[Step, ...] = steps[:split]
        self.passes: tuple[Step, ...] = steps[split:]
        self.edit_passes: tuple[Step, ...] = steps[sampler.num_steps_before_edit :]
        self.inversion: tuple[Step, ...] = plan_inversion(self.edit_passes)
        self.num_steps = len(steps)

    @property
    def num_transfer_lanes(self) -> int:
        """Lanes that one pass goes through: more than one where guidance begins or ends within it."""
        return len(self.pass_legs(None))

    def sketch_legs(self) -> list[Leg]:
        """The lanes of the sketch."""
        return self._legs(self.sketch, Kind.SKETCH, None)

    def inversion_legs(self, latent_size: LatentSize) -> list[Leg]:
        """The lanes of a source picture: to latents, and then to noise, unless there is one step alone to edit in."""
        legs = [Leg(Lane(Kind.ENCODE, latent_size=latent_size))]
        if self.inversion:
            legs.append(Leg(Lane(Kind.INVERT, latent_size=latent_size), len(self.inversion)))
        return legs

    def pass_legs(self, shape: Hashable, latent_size: LatentSize = None) -> list[Leg]:
        """The lanes of one pass for a subject of this shape."""
        if latent_size is not None:
            return self._legs(self.edit_passes, Kind.TRANSFER, shape, latent_size)
        return self._legs(self.passes, Kind.TRANSFER if self.needs_subject else Kind.SKETCH, shape)

    def passes_of(self, *, edits: bool) -> tuple[Step, ...]:
        """The steps of one pass, of an edit or not."""
        return self.edit_passes if edits else self.passes

    def num_calls(self, num_pictures: int, num_passes: int, *, edits: bool = False) -> int:
        """UNet evaluations behind an image, each guidance branch and each encoded picture counting one."""
        encodings = num_pictures if self.needs_subject else 0
        if self._sampler.is_adaptive:
            encodings *= num_passes * len(self.passes_of(edits=edits))
        if edits:
            return encodings + len(self.inversion) + num_passes * self._count(self.edit_passes, edits=True)
        return encodings + self._count(self.sketch) + num_passes * self._count(self.passes)

    def _count(self, steps: Sequence[Step], *, edits: bool = False) -> int:
        return sum(1 + self._sampler.is_guided(step.t, edits=edits) for step in steps)

    def _legs(self, steps: Sequence[Step], kind: Kind, shape: Hashable, latent_size: LatentSize = None) -> list[Leg]:
        runs = groupby(steps, key=lambda step: self._sampler.is_guided(step.t, edits=latent_size is not None))
        return [Leg(Lane(kind, guided, shape, latent_size), len(list(run))) for guided, run in runs]
