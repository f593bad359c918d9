"""From a subject's picture to the features that a sampler wants."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ezigen.config import ErrorCode, ItemError, SamplerConfig
from ezigen.images import Picture, fit_square
from ezigen.models.pixels import to_pixels
from ezigen.sampling.request import Request
from ezigen.subject import SubjectEncoder, SubjectFeatures
from ezigen.subject.foreground import mask_background


def check_subjects(request: Request) -> None:
    """Raises ItemError where the classes or the shares of a request's subject pictures do not go with them."""
    num_pictures = len(request.subjects)
    for name, values in (("subject_classes", request.subject_classes), ("mix", request.mix)):
        if values and len(values) != num_pictures:
            message = f"{request.key}: {name} has {len(values)} entries for {num_pictures} pictures; give one for each"
            raise ItemError(ErrorCode.ROW_INVALID, message)
    if request.mix and (min(request.mix) < 0 or not math.isclose(sum(request.mix), 1, abs_tol=1e-6)):
        message = f"{request.key}: mix is {request.mix}; shares are at least 0 and 1 together"
        raise ItemError(ErrorCode.ROW_INVALID, message)


def combine_subjects(features: Sequence[SubjectFeatures], mix: Sequence[float]) -> SubjectFeatures:
    """The features (batch 1) of a request's pictures as one: joined along the tokens (paper 3.1), or mixed."""
    return SubjectFeatures.mix(features, mix) if mix else SubjectFeatures.concatenate(features)


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
