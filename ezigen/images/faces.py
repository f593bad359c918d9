"""Where the largest face of a picture is, and pictures cut to it. Needs OpenCV: `pip install 'ezigen-pipeline[faces]'`.

The detector is OpenCV's Haar cascade of upright faces seen from the front, whose weights are in its package.
"""

from functools import cache, lru_cache
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ezigen.config import ConfigurationError
from ezigen.images.picture import Picture

FaceBox: TypeAlias = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are outside."""

SUBJECT_MARGIN = 1.6
"""Side of a subject's crop by that of its face: hair, chin and neck are in it."""

IDENTITY_MARGIN = 1.2
"""Side of the crop that a face network sees by that of the face."""

_CASCADE = "haarcascade_frontalface_alt.xml"
_SEARCHED_SIDE_PX = 800
_MIN_FACE_PX = 20  # what the cascade was trained on
_MIN_FACE_SHARE = 1 / 16
_lock = Lock()  # a cascade keeps the picture that it looks at


def load_opencv() -> Any:
    """The module cv2. Raises ConfigurationError where OpenCV is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise ConfigurationError(
            "faces are found by OpenCV, which is not installed here: pip install 'ezigen-pipeline[faces]', or leave "
            "sampler.subject_crop none and face_encoder empty"
        ) from error
    return cv2


def find_face(image: Image.Image) -> FaceBox | None:
    """The largest face, None where there is none. Faces of less than a 16th of the shorter side are not looked for."""
    small = image.convert("L")
    small.thumbnail((_SEARCHED_SIDE_PX, _SEARCHED_SIDE_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    found = _largest_face(small.tobytes(), small.width, small.height)
    if found is None:
        return None
    x, y, side = found
    scale_x, scale_y = image.width / small.width, image.height / small.height
    return round(x * scale_x), round(y * scale_y), round((x + side) * scale_x), round((y + side) * scale_y)


def crop_face(picture: Picture, margin: float) -> Picture | None:
    """The picture, and its mask, cut to a square around its largest face; None where there is no face.

    The square has margin times the side of the face, less where the picture ends: then it is moved, and has at most
    the picture's shorter side.
    """
    face = find_face(picture.rgb)
    if face is None:
        return None
    box = _square_around(face, margin, picture.rgb.size)
    mask = None if picture.mask is None else picture.mask.crop(box)
    return Picture(picture.rgb.crop(box), mask)


def _square_around(face: FaceBox, margin: float, size: tuple[int, int]) -> FaceBox:
    x0, y0, x1, y1 = face
    side = min(round(margin * max(x1 - x0, y1 - y0)), *size)
    left = min(max(0, (x0 + x1 - side) // 2), size[0] - side)
    top = min(max(0, (y0 + y1 - side) // 2), size[1] - side)
    return left, top, left + side, top + side


@lru_cache(maxsize=16)  # the items of one subject mostly come one after the other
def _largest_face(grey: bytes, width: int, height: int) -> tuple[int, int, int] | None:
    """x, y and side in an 8-bit picture, given as its rows; of equally large ones the leftmost."""
    pixels = np.frombuffer(grey, np.uint8).reshape(height, width)
    smallest = max(_MIN_FACE_PX, round(_MIN_FACE_SHARE * min(width, height)))
    with _lock:
        even = load_opencv().equalizeHist(pixels)
        found = _cascade().detectMultiScale(even, scaleFactor=1.1, minNeighbors=5, minSize=(smallest, smallest))
    faces = sorted((-int(side), int(x), int(y)) for x, y, side, _ in found)
    return (faces[0][1], faces[0][2], -faces[0][0]) if faces else None


@cache
def _cascade() -> Any:
    cv2 = load_opencv()
    return cv2.CascadeClassifier(cv2.data.haarcascades + _CASCADE)
