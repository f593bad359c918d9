"""Scores of images: text following, identity of things and faces, what an edit leaves; means with intervals.

Importing this package costs no torch.
"""

from typing import TYPE_CHECKING

from ezigen.lazy import lazy_names

if TYPE_CHECKING:
    from ezigen.metrics.faces import FaceEncoder, FaceScorer, OnnxFaceEncoder, load_face_scorer
    from ezigen.metrics.measures import Measurer, Shown
    from ezigen.metrics.pixels import psnr, ssim
    from ezigen.metrics.scores import CLIP_MODEL, DINO_MODEL, Scorer, load_scorer
    from ezigen.metrics.statistics import Interval, mean_interval, paired_difference

__all__ = [
    "CLIP_MODEL",
    "DINO_MODEL",
    "FaceEncoder",
    "FaceScorer",
    "Interval",
    "Measurer",
    "OnnxFaceEncoder",
    "Scorer",
    "Shown",
    "load_face_scorer",
    "load_scorer",
    "mean_interval",
    "paired_difference",
    "psnr",
    "ssim",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CLIP_MODEL": "scores",
        "DINO_MODEL": "scores",
        "FaceEncoder": "faces",
        "FaceScorer": "faces",
        "Interval": "statistics",
        "Measurer": "measures",
        "OnnxFaceEncoder": "faces",
        "Scorer": "scores",
        "Shown": "measures",
        "load_face_scorer": "faces",
        "load_scorer": "scores",
        "mean_interval": "statistics",
        "paired_difference": "statistics",
        "psnr": "pixels",
        "ssim": "pixels",
    },
)
