"""A request whose scene another model draws, as the request to edit what it drew."""

import logging
from dataclasses import replace

import numpy as np
from PIL import Image

from ezigen.config import SketchConfig
from ezigen.engine.cache import Cache
from ezigen.images import Picture
from ezigen.images.canvas import canvas_size
from ezigen.images.region import find_strong, keep_main_parts, to_region
from ezigen.models.segmenter import Segmenter
from ezigen.models.stack import Stack
from ezigen.sampling.request import Edit, Request
from ezigen.sketch.attention import find_word, word_attention
from ezigen.sketch.model import SketchModel

logger = logging.getLogger(__name__)

MAX_PICTURES = 32
"""Drawn pictures that are kept for products that share prompt and seed."""


class Sketcher:
    """Draws scenes with one model and finds in them, with another, where the subject goes. One thread at a time."""

    def __init__(
        self,
        model: SketchModel,
        stack: Stack,
        config: SketchConfig,
        *,
        negative_prompt: str = "",
        segmenter: Segmenter | None = None,
    ) -> None:
        """stack: its UNet finds the subject's class in a picture; negative_prompt: for requests that have none."""
        self._model = model
        self._stack = stack
        self._config = config
        self._negative_prompt = negative_prompt
        self._segmenter = segmenter
        self._pictures: Cache[tuple[str, str, int], Picture] = Cache(MAX_PICTURES)

    def check(self, request: Request) -> None:
        """Raises ItemError(ROW_INVALID) for a request whose region could not be found, before anything is drawn."""
        if self._config.region != "all":
            find_word(self._stack, request.prompt, request.subject_class)

    def draw(self, request: Request) -> Picture:
        """The scene of a request. It does not know the subject: equal prompts and seeds share it."""
        negative = request.negative_prompt or self._negative_prompt
        key = (request.prompt, negative, request.seed)
        picture = self._pictures.get(key)
        if picture is None:
            side = self._config.size_px or self._stack.image_size_px
            picture = self._model.draw(request.prompt, negative, request.seed, (side, side))
            self._pictures.put(key, picture)
        return picture

    def find_region(self, picture: Picture, request: Request) -> Image.Image | None:
        """The mask "L" of where the subject goes in a picture; None means everywhere.

        That is so in region all, and in the others where nothing stands out (see `find_strong`), with a warning.
        """
        config = self._config
        if config.region == "all":
            return None
        canvas = self._to_canvas(picture.rgb)
        strength = word_attention(self._stack, canvas, request.prompt, request.subject_class).numpy()
        found = find_strong(strength)
        if found is None:
            logger.warning(
                "%s: no %s stands out in its sketch; all of it may change", request.key, request.subject_class
            )
            return None
        if self._segmenter is not None:
            outlined = self._segmenter.outline(canvas, found, strength)
            found = keep_main_parts(outlined) if outlined.any() else found
        return to_region(np.asarray(found), config.grow)

    def to_edit(self, request: Request, mask: Image.Image | None = None) -> Request:
        """The request with its drawn scene as what it edits, in the region that is found or, with a mask, given (bright
        where the subject goes). One that edits already comes back as it is.

        Raises ItemError as `check` and `SketchModel.draw` do.
        """
        if request.edit is not None:
            return request
        if mask is None:
            self.check(request)
        picture = self.draw(request)
        region = self.find_region(picture, request) if mask is None else mask
        return replace(request, edit=Edit(picture, region))

    def _to_canvas(self, image: Image.Image) -> Image.Image:
        size = canvas_size(image.size, self._stack.image_size_px, self._stack.px_per_latent)
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
