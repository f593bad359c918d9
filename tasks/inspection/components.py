"""Tokens as pictures: their first three principal components as red, green and blue on the token grid."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

EMPTY = 235
"""Grey of grid cells whose token is not stored."""
_TAILS = (1.0, 99.0)


def draw_components(tokens: npt.NDArray[np.float32], kept: npt.NDArray[np.bool_] | None = None) -> Image.Image:
    """A picture with one pixel per token, (N, C) in raster order on a square grid.

    kept: (G,) bool, which cells of the grid the tokens belong to; the others become grey. Signs and scales of the
    components are fixed by the tokens alone, so that equal features give equal pictures.
    """
    num_cells = len(tokens) if kept is None else len(kept)
    side = math.isqrt(num_cells)
    if side * side != num_cells:
        raise ValueError(f"{num_cells} tokens are no square grid")
    colours = np.full((num_cells, 3), EMPTY, np.uint8)
    colours[slice(None) if kept is None else kept] = _to_colours(project(tokens))
    return Image.fromarray(colours.reshape(side, side, 3))


def project(tokens: npt.NDArray[np.float32], num_components: int = 3) -> npt.NDArray[np.float64]:
    """The tokens' coordinates (N, num_components) along their directions of largest variance; zeros where none is."""
    coordinates = np.zeros((len(tokens), num_components))
    if not len(tokens):
        return coordinates
    centred = tokens.astype(np.float64) - tokens.mean(axis=0, dtype=np.float64)
    # The smaller of the two Gram matrices; eigenvectors come in ascending order.
    if len(centred) < centred.shape[1]:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        found = vectors[:, ::-1] * np.sqrt(np.clip(values[::-1], 0, None))
    else:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        found = centred @ vectors[:, ::-1]
    found = found[:, :num_components]
    coordinates[:, : found.shape[1]] = found * _signs(found)
    return coordinates


def _signs(coordinates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sign that makes the longer tail of each component bright."""
    skew = (coordinates**3).sum(axis=0)
    return np.where(skew < 0, -1.0, 1.0)


def _to_colours(coordinates: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    if not len(coordinates):
        return np.zeros((0, 3), np.uint8)
    low, high = np.percentile(coordinates, _TAILS, axis=0)
    spread = np.where(high - low > 1e-12, high - low, 1.0)
    shares: npt.NDArray[np.float64] = np.clip((coordinates - low) / spread, 0, 1)
    return np.rint(255 * shares).astype(np.uint8)
