"""A subject in a source picture: inversion, and the background that it leaves (paper 3.4, Eq. 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ezigen.config import EditConfig, ErrorCode, ItemError, SamplerConfig
from ezigen.diffusion import CLEAN
from ezigen.images.canvas import Canvas, canvas_size, make_canvas
from ezigen.models.stack import Stack
from ezigen.sampling.denoiser import Step
from ezigen.sampling.request import Edit, Request


@dataclass(frozen=True, eq=False)
class Background:
    """What does not change: cells (1, 1, h, w) are True where the picture does, trajectory holds the source's latents
    (1, c, h, w) by timestep, from its inversion, with CLEAN the source itself. At a timestep that is not in it, nothing
    is blended.
    """

    cells: Tensor
    trajectory: Mapping[int, Tensor]

    def blend(self, latents: Tensor, t: int) -> Tensor:
        """M x_t + (1 - M) x_t_source (Eq. 5), at the timestep that the latents (1, c, h, w) have just reached."""
        source = self.trajectory.get(t)
        return latents if source is None else torch.where(self.cells, latents, source)


def plan_inversion(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The way up to where these steps begin: 1 -> 21, ..., 361 -> 381.

    The source stands for the sample at their last timestep, the least noisy one, as in diffusers' inverse scheduler.
    """
    timesteps = [step.t for step in reversed(steps)]
    return tuple(Step(number, t, next_t) for number, (t, next_t) in enumerate(pairwise(timesteps), start=1))


def begin_trajectory(source: Tensor, steps: Sequence[Step]) -> dict[int, Tensor]:
    """The trajectory before its first step: the latents of the source."""
    return {CLEAN: source, steps[-1].t: source}


def make_background(
    canvas: Canvas, trajectory: Mapping[int, Tensor], steps: Sequence[Step], edit: EditConfig
) -> Background:
    """The background of an edit along these steps, from its source's trajectory; see `EditConfig` for the lag."""
    cells = torch.from_numpy(canvas.cells)[None, None].to(trajectory[CLEAN].device)
    if edit.background_lag:
        levels = [step.t for step in steps]
        lagging = {t: trajectory[levels[max(0, place - edit.background_lag)]] for place, t in enumerate(levels)}
        trajectory = {**lagging, CLEAN: trajectory[CLEAN]}
    if not edit.keeps_background:
        trajectory = {t: latents for t, latents in trajectory.items() if t != CLEAN}
    return Background(cells, trajectory)


def prepare_edit(request: Request, stack: Stack, sampler: SamplerConfig) -> Canvas | None:
    """The canvas of a request that edits; None for others.

    Raises ItemError naming the request: as `make_canvas`, and ROW_INVALID in mode text_only, which has no subject.
    """
    edit = request.edit
    if edit is None:
        return None
    if sampler.mode == "text_only":
        message = f"{request.key}: mode text_only knows no subject and cannot edit; use another mode"
        raise ItemError(ErrorCode.ROW_INVALID, message)
    try:
        return make_canvas(
            edit.source.rgb,
            edit.mask,
            edit.box,
            model_size_px=stack.image_size_px,
            px_per_latent=stack.px_per_latent,
            feather=sampler.edit.feather,
        )
    except ItemError as error:
        raise ItemError(error.code, f"{request.key}: {error.message}") from error


def latent_size_of(edit: Edit | None, stack: Stack) -> tuple[int, int] | None:
    """Height and width of an edit's latents, before anything is computed; None without an edit."""
    if edit is None:
        return None
    unit = stack.px_per_latent
    width, height = canvas_size(edit.source.rgb.size, stack.image_size_px, unit)
    return height // unit, width // unit
