"""What goes into the sampler and what comes out. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from PIL import Image

from ezigen.images import Picture

if TYPE_CHECKING:
    from torch import Tensor

    from ezigen.subject import SubjectFeatures

StopReason = Literal["threshold", "max_loops", "fixed", "mode"]
Phase = Literal["text", "invert", "transfer"]


@dataclass(frozen=True, eq=False)
class Edit:
    """Where a subject goes in a picture that exists (paper 3.4).

    mask: bright (or, with an alpha channel, opaque) where the picture changes; of any size in the source's proportions.
    box: (x0, y0, x1, y1) in pixels of the source, instead of a mask. With neither, everything changes, and the source
    is no more than a sketch: what another model drew, for example.
    """

    source: Picture
    mask: Image.Image | None = None
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """One image to make: a subject, given by one or several pictures, in the scene of a prompt, or in a source picture
    that is edited.
    """

    key: str
    prompt: str
    subjects: tuple[Picture, ...] = ()
    subject_class: str = "object"
    negative_prompt: str = ""
    seed: int = 0
    preview: bool = True
    """Whether the sample keeps the pictures on the way: the sketch, and the image of every loop."""
    features: "tuple[SubjectFeatures | None, ...]" = ()
    """By subject picture its features (batch 1), where they are known already; the engine encodes the others."""
    subject_classes: tuple[str, ...] = ()
    """By subject picture its class, where the pictures show different subjects; empty: subject_class for all."""
    mix: tuple[float, ...] = ()
    """By subject picture its share, all together 1: one subject between these, as in the paper's interpolation. Empty:
    all of them, side by side, several views of one subject or several subjects.
    """
    edit: Edit | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """By subject picture the class under which it is encoded."""
        return self.subject_classes or (self.subject_class,) * len(self.subjects)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image made, and how. That of an edit has its source's size; pictures on the way have the model's.

    sketch: the image foreseen at the split, before the subject enters; None in modes without a split and for edits.
    loops: the image after the first appearance transfer, then after each loop, up to `image`; none in text_only.
    Without a preview, there is neither a sketch nor a loop.
    num_loops: loops after the first transfer. similarities: one per loop, each image with the one before (if measured).
    num_unet_calls: UNet evaluations behind this image, each guidance branch and each encoded subject picture counting
    one; shared work (a sketch, a subject) counts as if it had been done for this image alone.
    seconds: this image's share of the time of its batch.
    """

    key: str
    image: Image.Image
    sketch: Image.Image | None
    loops: tuple[Image.Image, ...]
    num_loops: int
    stop_reason: StopReason
    similarities: tuple[float, ...]
    num_unet_calls: int
    seconds: float


@dataclass(frozen=True, eq=False)
class StepReport:
    """One finished denoising step of a batch, for progress and previews.

    phase: text (adapters idle), invert (a source towards noise) or transfer; loop 0 is the first pass. x0: the
    predicted clean latents (B, c, h, w), in the order of keys.
    """

    keys: tuple[str, ...]
    phase: Phase
    loop: int
    step: int
    num_steps: int
    x0: "Tensor"


OnStep: TypeAlias = Callable[[StepReport], None]
"""Called after every step; what it raises ends the batch."""
