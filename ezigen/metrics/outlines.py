"""Where in an edited picture the new subject ends: it seldom has the outline of what it took the place of."""

import numpy as np
from PIL import Image
from scipy import ndimage

from ezigen.images.region import bounding_box, keep_main_parts, to_region
from ezigen.models.segmenter import Segmenter

MIN_SHARE = 0.05
"""Of the box of the mask: less is a detail of the subject, or nothing at all."""

_HALF = 128


def outline_subject(segmenter: Segmenter, image: Image.Image, mask: Image.Image) -> Image.Image | None:
    """The subject of an edited RGB image as a mask "L" of its size: what SAM outlines within the box of the edit's
    mask, asked with that box and the point that lies deepest in the mask.

    mask: "L", of the image's size. None where it marks nothing, and where SAM outlines less than MIN_SHARE of the box.
    """
    values = np.asarray(mask)
    marked = values >= _HALF if (values >= _HALF).any() else values > 0
    if not marked.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(marked, 1))[1:-1, 1:-1]  # the rim of the picture is an end, too
    x0, y0, x1, y1 = bounding_box(marked)
    within = np.zeros_like(marked)
    within[y0:y1, x0:x1] = segmenter.outline(image, marked, depth)[y0:y1, x0:x1]
    if within.sum() < MIN_SHARE * (x1 - x0) * (y1 - y0):
        return None
    return to_region(keep_main_parts(within))
