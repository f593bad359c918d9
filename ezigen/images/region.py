"""From what a network says about every place of a picture to the region in which the subject goes. Needs no torch."""

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

MIN_CONTRAST = 1.5
"""Of the mean inside a region to the mean outside: what is flatter shows no object."""

_MIN_PART = 0.2
"""Parts that are smaller than this share of the largest one are noise."""

Found = npt.NDArray[np.bool_]
Strength = npt.NDArray[np.floating]


def find_strong(strength: Strength) -> Found | None:
    """Where values (H, W) of at least 0 are high, by Otsu's threshold, the parts that matter, without holes.

    None where they are much the same everywhere (MIN_CONTRAST), so that nothing was found.
    """
    threshold = otsu(strength)
    above = strength > threshold
    if above.all() or not above.any() or strength[above].mean() < MIN_CONTRAST * strength[~above].mean():
        return None
    return keep_main_parts(above)


def otsu(values: Strength, num_bins: int = 256) -> float:
    """The value that best separates low from high ones (largest variance between the two classes; Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=num_bins)
    share = np.cumsum(counts) / values.size
    mean = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2) / values.size
    both = (share > 0) & (share < 1)
    if not both.any():
        return float(values.max())
    between = np.zeros(num_bins)
    between[both] = (mean[-1] * share - mean)[both] ** 2 / (share * (1 - share))[both]
    return float(edges[1:][between.argmax()])


def keep_main_parts(found: Found) -> Found:
    """The largest connected part and those that are not much smaller, without holes."""
    labels, num_parts = ndimage.label(found)
    areas = np.bincount(labels.ravel(), minlength=num_parts + 1)[1:]
    main = 1 + np.flatnonzero(areas >= _MIN_PART * areas.max())
    filled: Found = ndimage.binary_fill_holes(np.isin(labels, main))
    return filled


def to_region(found: Found, grow: float = 0.0) -> Image.Image:
    """The mask "L" (255 = may change) of what was found (H, W), reaching beyond it by a share of the shorter side."""
    radius = round(grow * min(found.shape))
    if radius:
        found = ndimage.distance_transform_edt(~found) <= radius
    return Image.fromarray(found.astype(np.uint8) * 255)


def bounding_box(found: Found) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a region that is not empty; x1 and y1 lie outside."""
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
