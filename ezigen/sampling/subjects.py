"""From a subject's picture to the features that a sampler wants."""

import numpy as np
import torch

from ezigen.config import SamplerConfig
from ezigen.images import Picture, fit_square
from ezigen.models.pixels import to_pixels
from ezigen.subject import SubjectEncoder, SubjectFeatures
from ezigen.subject.foreground import mask_background


def encode_subject(
    encoder: SubjectEncoder, picture: Picture, subject_class: str, size_px: int, sampler: SamplerConfig
) -> SubjectFeatures:
    """Features (batch 1) of one picture, padded to a square and encoded at t_sub; see SamplerConfig.subject_tokens."""
    square = fit_square(picture, size_px)
    features = encoder.encode(
        to_pixels(square.rgb)[None], [subject_class], t_sub=sampler.t_sub, template=sampler.subject_prompt
    )
    return keep_tokens(features, square, sampler)


def keep_tokens(features: SubjectFeatures, square: Picture, sampler: SamplerConfig) -> SubjectFeatures:
    """The tokens of a picture, as it was encoded, that this sampler wants."""
    if sampler.subject_tokens == "all" or square.mask is None:
        return features
    return mask_background(features, torch.from_numpy(np.array(square.mask)) > 127)
