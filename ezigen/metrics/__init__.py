"""Scores of images: text following (CLIP-T) and identity (DINO). Importing this package costs no torch."""

from typing import TYPE_CHECKING

from ezigen.lazy import lazy_names

if TYPE_CHECKING:
    from ezigen.metrics.scores import CLIP_MODEL, DINO_MODEL, Scorer, load_scorer

__all__ = ["CLIP_MODEL", "DINO_MODEL", "Scorer", "load_scorer"]

__getattr__ = lazy_names(
    __name__, {"CLIP_MODEL": "scores", "DINO_MODEL": "scores", "Scorer": "scores", "load_scorer": "scores"}
)
