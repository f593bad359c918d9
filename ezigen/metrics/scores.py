"""How well an image shows its prompt and its subject (paper 4)."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image
from torch.nn import functional as F  # noqa: N812

from ezigen.config import ConfigurationError, ModelConfig
from ezigen.images import Picture, fit_square
from ezigen.metrics.faces import FaceScorer, load_face_scorer
from ezigen.models.image_encoder import ImageEncoder, load_image_encoder
from ezigen.models.pixels import to_pixels
from ezigen.models.text_image_encoder import TextImageEncoder, load_text_image_encoder

CLIP_MODEL = "openai/clip-vit-base-patch32"
DINO_MODEL = "facebook/dino-vits16"
"""The encoders of the published CLIP-T and DINO scores."""

_LOG = logging.getLogger(__name__)
_Encoder = TypeVar("_Encoder")


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores of single images; a missing encoder leaves its score out.

    Scores of the embedded model's own small encoders are comparable among themselves alone, never with published ones.
    """

    clip: TextImageEncoder | None = None
    dino: ImageEncoder | None = None
    face: FaceScorer | None = None

    def score(self, image: Image.Image, prompt: str, subjects: Sequence[Picture]) -> dict[str, float]:
        """`clip_t`: cosine of image and prompt; `dino`: of image and subject (CLS tokens), mean over its pictures;
        `face`, `face_found`: see FaceScorer.
        """
        scores = {}
        if self.clip is not None:
            scores["clip_t"] = (self.clip.images([image]) @ self.clip.texts([prompt]).T).item()
        if self.dino is not None and subjects:
            scores["dino"] = self._to_subjects(self.dino, image, subjects)
        if self.face is not None and subjects:
            scores |= self.face.score(image, subjects)
        return scores

    @staticmethod
    def _to_subjects(dino: ImageEncoder, image: Image.Image, subjects: Sequence[Picture]) -> float:
        cosines = []
        made = dino.cls(to_pixels(image)[None])
        for picture in subjects:
            given = dino.cls(to_pixels(fit_square(picture, dino.size_px).rgb)[None])
            cosines.append(F.cosine_similarity(made, given).item())
        return sum(cosines) / len(cosines)


def load_scorer(model: ModelConfig) -> Scorer:
    """The encoders for this model: the shipped ones for "mini", else those of the published scores.

    Scores are an extra: an encoder that is not there is left out with a warning that says how to get it. A face encoder
    was asked for: ConfigurationError where it is not there.
    """
    mini = model.model == "mini"
    return Scorer(
        clip=_optional(load_text_image_encoder, "mini" if mini else CLIP_MODEL, model.device),
        dino=_optional(load_image_encoder, "mini" if mini else DINO_MODEL, model.device),
        face=load_face_scorer(model.face_encoder, model.device) if model.face_encoder else None,
    )


def _optional(load: Callable[[str, str], _Encoder], location: str, device: str) -> _Encoder | None:
    try:
        return load(location, device)
    except ConfigurationError as error:
        _LOG.warning("no scores from %s: %s", location, error)
        return None
