"""What the engine's jobs carry from call to call."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image
from torch import Tensor

from ezigen.adapters.attach import SubjectKV
from ezigen.diffusion import CLEAN
from ezigen.images import Picture
from ezigen.images.canvas import Canvas
from ezigen.models.text import TextCondition
from ezigen.sampling.denoiser import Step
from ezigen.sampling.editing import Background
from ezigen.sampling.request import Request, StopReason
from ezigen.subject import SubjectFeatures

SketchKey: TypeAlias = tuple[str, str, int]
"""Prompt, negative prompt and seed: all that a sketch depends on under one sampler."""

ItemKey: TypeAlias = tuple[str, SketchKey, str]
"""Subject, sketch and edit ("" without one): all that an image depends on under one sampler."""


@dataclass(frozen=True, eq=False)
class Guide:
    """What one sample is guided by, batch 1: its texts, and the subject if there is one."""

    positive: TextCondition
    negative: TextCondition
    subject: SubjectKV | None = None
    moving: "SubjectJob | None" = None
    """The subject, where its keys and values depend on the timestep; `subject` then has their shapes."""


@dataclass(eq=False)
class Passage:
    """Latents (1, c, h, w), fp32, on their way along the steps of one pass."""

    latents: Tensor
    guide: Guide
    seed: int
    steps: Sequence[Step]
    loop: int = 0
    num_done: int = 0
    x0: Tensor | None = None
    """The clean latents that the last step foresaw."""
    last_t: int = CLEAN
    """The timestep of the last step of this pass."""
    background: Background | None = None
    """Of an edit, what its latents are blended with after every step."""
    trajectory: dict[int, Tensor] | None = None
    """Of an inversion, where its latents are kept by timestep."""

    @property
    def step(self) -> Step:
        """The next one."""
        return self.steps[self.num_done]


@dataclass(eq=False)
class SubjectJob:
    """A subject's pictures on their way to keys and values, and the items that wait for them."""

    key: str
    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]
    features: tuple[SubjectFeatures | None, ...] = ()
    """By picture, where they are known already."""
    mix: tuple[float, ...] = ()
    """By picture its share of the one subject between them; empty: all of them side by side."""
    seed: int = 0
    """Of its noise; see SamplerConfig.subject_noise."""
    waiting: "list[ItemJob]" = field(default_factory=list)
    kv: SubjectKV | None = None
    seconds: float = 0.0

    def known(self, index: int) -> SubjectFeatures | None:
        """The features of one of its pictures, if they need not be computed."""
        return self.features[index] if index < len(self.features) else None

    @property
    def num_to_encode(self) -> int:
        """Pictures whose features have to be computed."""
        return sum(self.known(index) is None for index in range(len(self.pictures)))


@dataclass(eq=False)
class SketchJob:
    """A sketch, and the items that wait for it."""

    key: SketchKey
    passage: Passage
    waiting: "list[ItemJob]" = field(default_factory=list)
    image: Image.Image | None = None
    """The picture foreseen at the end; None where nobody wanted to see it."""
    seconds: float = 0.0

    @property
    def is_drawn(self) -> bool:
        """Whether its last step was made."""
        return self.passage.num_done == len(self.passage.steps)


@dataclass(eq=False)
class InversionJob:
    """A source picture on its way to noise, and the items that wait for it."""

    key: str
    picture: Image.Image
    waiting: "list[ItemJob]" = field(default_factory=list)
    passage: Passage | None = None
    """None until the picture is encoded."""
    seconds: float = 0.0

    @property
    def trajectory(self) -> dict[int, Tensor]:
        """The source's latents by timestep; complete when the job has ended."""
        assert self.passage is not None
        assert self.passage.trajectory is not None
        return self.passage.trajectory

    @property
    def num_bytes(self) -> int:
        """Memory that the trajectory takes."""
        return sum(latents.nbytes for latents in self.trajectory.values())


@dataclass(eq=False)
class ItemJob:
    """One image to be made, for one request or for several that are equal but for their keys."""

    requests: list[Request]
    key: ItemKey
    subject: SubjectJob | None = None
    sketch: SketchJob | None = None
    canvas: Canvas | None = None
    """Of an edit."""
    inversion: InversionJob | None = None
    background: Background | None = None
    passage: Passage | None = None
    num_loops: int = 0
    restart: Tensor | None = None
    """The latents of its last picture, where loops start from pictures."""
    reference: Tensor | None = None
    """What the last image is compared by: patch tokens (1, N, D) or latents."""
    image: Image.Image | None = None
    images: list[Image.Image] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    stop_reason: StopReason = "mode"
    seconds: float = 0.0

    @property
    def request(self) -> Request:
        """The first of the equal ones."""
        return self.requests[0]

    @property
    def latent_size(self) -> tuple[int, int] | None:
        """Of an edit, height and width of its latents."""
        return None if self.canvas is None else self.canvas.latent_size

    @property
    def wants_preview(self) -> bool:
        """Whether one of them keeps the pictures on the way."""
        return any(request.preview for request in self.requests)
