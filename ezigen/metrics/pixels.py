"""What an edit leaves of its background, by pixels: PSNR and SSIM outside of a mask."""

import numpy as np
import numpy.typing as npt
from PIL import Image

IDENTICAL_DB = 100.0
"""PSNR of equal pictures, which by the formula is infinite and would make every mean infinite."""

_SIGMA_PX = 1.5
_RADIUS_PX = 5
_K1, _K2 = 0.01, 0.03

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def psnr(image: Image.Image, reference: Image.Image, where: Mask | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two RGB pictures of one size, at most IDENTICAL_DB.

    where: (H, W), the pixels that count; all of them where it is not given. Raises ValueError for other sizes, or if
    no pixel counts.
    """
    one, other = _pixels(image, reference)
    errors = np.square(one - other).mean(-1)
    mean = float(_chosen(errors, where).mean())
    return IDENTICAL_DB if mean == 0 else min(IDENTICAL_DB, -10 * float(np.log10(mean)))


def ssim(image: Image.Image, reference: Image.Image, where: Mask | None = None) -> float:
    """Structural similarity, in [-1, 1], of two RGB pictures of one size (Wang et al. 2004).

    Means and variances are weighted by a Gaussian of 1.5 px, channels and pixels are averaged; where nothing else is
    said the pixels whose window crosses the border are left out. where: as in `psnr`. Raises ValueError as `psnr`, and
    for a side of less than 11 px.
    """
    from scipy.ndimage import gaussian_filter

    one, other = _pixels(image, reference)
    if min(one.shape[:2]) <= 2 * _RADIUS_PX:
        raise ValueError(f"SSIM needs {2 * _RADIUS_PX + 1} px a side, got {one.shape[1]} x {one.shape[0]}")

    def smooth(values: Values) -> Values:
        means: Values = gaussian_filter(values, (_SIGMA_PX, _SIGMA_PX, 0), radius=(_RADIUS_PX, _RADIUS_PX, 0))
        return means

    mean, other_mean = smooth(one), smooth(other)
    variance, other_variance = smooth(one * one) - mean**2, smooth(other * other) - other_mean**2
    covariance = smooth(one * other) - mean * other_mean
    c1, c2 = _K1**2, _K2**2
    above = (2 * mean * other_mean + c1) * (2 * covariance + c2)
    below = (mean**2 + other_mean**2 + c1) * (variance + other_variance + c2)
    similarity = (above / below).mean(-1)
    if where is not None:
        return float(_chosen(similarity, where).mean())
    return float(similarity[_RADIUS_PX:-_RADIUS_PX, _RADIUS_PX:-_RADIUS_PX].mean())


def _pixels(*images: Image.Image) -> list[Values]:
    """(H, W, 3) in [0, 1] each."""
    if len({image.size for image in images}) > 1:
        sizes = " and ".join(f"{image.width} x {image.height}" for image in images)
        raise ValueError(f"pictures of {sizes} px cannot be compared pixel by pixel")
    return [np.asarray(image.convert("RGB"), dtype=np.float64) / 255 for image in images]


def _chosen(values: Values, where: Mask | None) -> Values:
    if where is None:
        return values
    if where.shape != values.shape:
        raise ValueError(f"a mask of shape {where.shape} for pictures of shape {values.shape}")
    if not where.any():
        raise ValueError("the mask leaves no pixel to compare")
    return values[where]
