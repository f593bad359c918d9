"""Which steps an image takes, and in which lanes, under one sampler."""

from collections.abc import Hashable, Sequence
from itertools import groupby

from ezigen.config import SamplerConfig
from ezigen.engine.planner import Kind, Lane, Leg
from ezigen.sampling.denoiser import Step, plan_steps


class Route:
    """The steps of the two stages (paper 3.2): `sketch` from text alone, `passes` of appearance transfer.

    In mode text_only the only pass needs no subject; in full_injection there is no sketch.
    """

    def __init__(self, sampler: SamplerConfig, timesteps: Sequence[int]) -> None:
        steps = plan_steps(timesteps)
        self._sampler = sampler
        self.needs_subject = sampler.mode != "text_only"
        split = sampler.num_sketch_steps if sampler.mode in ("decoupled", "iterative") else 0
        self.sketch: tuple[Step, ...] = steps[:split]
        self.passes: tuple[Step, ...] = steps[split:]
        self.num_steps = len(steps)

    @property
    def num_transfer_lanes(self) -> int:
        """Lanes that one pass goes through: more than one where guidance begins or ends within it."""
        return len(self.pass_legs(None))

    def sketch_legs(self) -> list[Leg]:
        """The lanes of the sketch."""
        return self._legs(self.sketch, Kind.SKETCH, None)

    def pass_legs(self, shape: Hashable) -> list[Leg]:
        """The lanes of one pass for a subject of this shape."""
        return self._legs(self.passes, Kind.TRANSFER if self.needs_subject else Kind.SKETCH, shape)

    def num_calls(self, num_pictures: int, num_passes: int) -> int:
        """UNet evaluations behind an image, each guidance branch and each encoded picture counting one."""
        encodings = num_pictures if self.needs_subject else 0
        return encodings + self._count(self.sketch) + num_passes * self._count(self.passes)

    def _count(self, steps: Sequence[Step]) -> int:
        return sum(1 + self._sampler.is_guided(step.t) for step in steps)

    def _legs(self, steps: Sequence[Step], kind: Kind, shape: Hashable) -> list[Leg]:
        runs = groupby(steps, key=lambda step: self._sampler.is_guided(step.t))
        return [Leg(Lane(kind, guided, shape), len(list(run))) for guided, run in runs]
