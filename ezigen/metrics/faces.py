"""Whether an image shows the person that its subject is (paper 4, the protocol of FastComposer)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ezigen.config import ConfigurationError
from ezigen.images import Picture
from ezigen.images.faces import IDENTITY_MARGIN, crop_face, load_opencv
from ezigen.models.image_encoder import load_image_encoder
from ezigen.models.pixels import to_pixels

_ARCFACE_SIDE_PX = 112


class FaceEncoder(Protocol):
    """What `ezigen.models.ImageEncoder` is, too."""

    @property
    def size_px(self) -> int:
        """Side of the pictures that it takes."""

    def cls(self, images: Tensor) -> Tensor:
        """One vector (B, D) for each of the images (B, 3, size_px, size_px) in [-1, 1]."""


class OnnxFaceEncoder:
    """A face network in an ONNX file, as ArcFace's: one input (1, 3, 112, 112), RGB in [-1, 1], one output (1, D)."""

    size_px = _ARCFACE_SIDE_PX

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError for a file that OpenCV does not read, and without OpenCV."""
        self._cv2 = load_opencv()
        try:
            self._network: Any = self._cv2.dnn.readNetFromONNX(str(path))
        except self._cv2.error as error:
            raise ConfigurationError(f"face_encoder {path}: OpenCV does not read this ONNX file: {error}") from error
        self._check(path)

    def cls(self, images: Tensor) -> Tensor:
        """One vector (B, D) for each of the images (B, 3, 112, 112) in [-1, 1]."""
        return torch.cat([self._forward(image[None]) for image in images.float().cpu()])

    def _forward(self, image: Tensor) -> Tensor:
        self._network.setInput(np.ascontiguousarray(image.numpy()))
        return torch.from_numpy(self._network.forward().copy()).flatten(1)

    def _check(self, path: Path) -> None:
        try:
            self._forward(torch.zeros(1, 3, self.size_px, self.size_px))
        except self._cv2.error as error:
            size = f"(1, 3, {self.size_px}, {self.size_px})"
            raise ConfigurationError(f"face_encoder {path}: the network does not take {size}: {error}") from error


@dataclass(frozen=True, eq=False)
class FaceScorer:
    """Compares the largest faces of two pictures."""

    encoder: FaceEncoder

    def score(self, image: Image.Image, subjects: Sequence[Picture]) -> dict[str, float]:
        """`face`: cosine of the faces of image and subject, mean over its pictures; 0 where either shows no face.

        `face_found`: share of the subject's pictures for which both show one.
        """
        made = self._embed(Picture(image))
        given = [self._embed(picture) for picture in subjects]
        cosines = [F.cosine_similarity(made, one).item() for one in given if made is not None and one is not None]
        return {"face": sum(cosines) / len(given), "face_found": len(cosines) / len(given)}

    def _embed(self, picture: Picture) -> Tensor | None:
        face = crop_face(picture, IDENTITY_MARGIN)
        if face is None:
            return None
        side = self.encoder.size_px
        return self.encoder.cls(to_pixels(face.rgb.resize((side, side), Image.Resampling.LANCZOS))[None])


def load_face_scorer(location: str, device: str = "auto") -> FaceScorer:
    """location: an ONNX file, or whatever `load_image_encoder` takes. Raises ConfigurationError, with a remedy."""
    load_opencv()
    path = Path(location).expanduser()
    if path.suffix != ".onnx":
        return FaceScorer(load_image_encoder(location, device))
    if not path.is_file():
        raise ConfigurationError(f"face_encoder {location}: no such file; give the path of a face network as ONNX")
    return FaceScorer(OnnxFaceEncoder(path))
