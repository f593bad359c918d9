"""A photograph of a person, and of others: what scikit-image has in its package."""

import numpy as np
import skimage.data
from PIL import Image

FACE_CENTRE = (222, 112)
"""Between the eyes and the mouth of the astronaut, by eye."""


def astronaut() -> Image.Image:
    """512 x 512 px; her face is a fifth of it, in the upper half."""
    return Image.fromarray(skimage.data.astronaut())


def cat() -> Image.Image:
    return Image.fromarray(skimage.data.chelsea())


def someone_else(number: int) -> Image.Image:
    """A face of Labeled Faces in the Wild (25 x 25 px, grey) on a grey wall of 300 x 300 px."""
    face = Image.fromarray(np.uint8(skimage.data.lfw_subset()[number] * 255)).resize(
        (150, 150), Image.Resampling.BICUBIC
    )
    wall = Image.new("RGB", (300, 300), (90, 90, 90))
    wall.paste(face.convert("RGB"), (75, 75))
    return wall
