"""Scores of images: text following (CLIP-T) and identity (DINO, faces). Importing this package costs no torch."""

from typing import TYPE_CHECKING

from ezigen.lazy import lazy_names

if TYPE_CHECKING:
    from ezigen.metrics.faces import FaceEncoder, FaceScorer, OnnxFaceEncoder, load_face_scorer
    from ezigen.metrics.scores import CLIP_MODEL, DINO_MODEL, Scorer, load_scorer

__all__ = [
    "CLIP_MODEL",
    "DINO_MODEL",
    "FaceEncoder",
    "FaceScorer",
    "OnnxFaceEncoder",
    "Scorer",
    "load_face_scorer",
    "load_scorer",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CLIP_MODEL": "scores",
        "DINO_MODEL": "scores",
        "FaceEncoder": "faces",
        "FaceScorer": "faces",
        "OnnxFaceEncoder": "faces",
        "Scorer": "scores",
        "load_face_scorer": "faces",
        "load_scorer": "scores",
    },
)
