"""From a subject's picture to the features that a sampler wants."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from ezigen.config import ErrorCode, ItemError, SamplerConfig, SubjectEncoderKind
from ezigen.diffusion import CLEAN
from ezigen.images import Picture, fit_square
from ezigen.images.faces import SUBJECT_MARGIN, crop_face
from ezigen.images.picture import squash_square
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


def prepare_subjects(request: Request, sampler: SamplerConfig, size_px: int) -> Request:
    """The request with its pictures cropped (SamplerConfig.subject_crop) and blank ones, of no class, in the slots that
    it leaves empty (subject_slots).

    Raises ItemError as `check_subjects`, for a request without a picture, and for a picture without the face that it is
    to be cropped to.
    """
    if not request.subjects:
        message = f"{request.key}: mode {sampler.mode} needs at least one subject picture"
        raise ItemError(ErrorCode.ROW_INVALID, message)
    check_subjects(request)
    if sampler.subject_crop == "face":
        request = _crop_to_faces(request)
    num_missing = sampler.subject_slots - len(request.subjects)
    if request.mix or num_missing <= 0:
        return request
    blank = Picture(Image.new("RGB", (size_px, size_px), "white"))
    return replace(
        request,
        subjects=(*request.subjects, *(blank,) * num_missing),
        subject_classes=(*request.classes, *("",) * num_missing),
    )


def _crop_to_faces(request: Request) -> Request:
    cropped = []
    for number, picture in enumerate(request.subjects, start=1):
        face = crop_face(picture, SUBJECT_MARGIN)
        if face is None:
            which = f"{request.key}: subject picture {number} of {len(request.subjects)}"
            remedy = "give another picture, or set sampler.subject_crop none"
            raise ItemError(ErrorCode.FACE_MISSING, f"{which} shows no face from the front; {remedy}")
        cropped.append(face)
    return replace(request, subjects=tuple(cropped))


def check_features(request: Request, sampler: SamplerConfig, encoder: SubjectEncoderKind = "frozen") -> None:
    """Raises ItemError where a request brings features that this sampler, or the adapters' own subject encoder, would
    not have made of its pictures.
    """
    reasons = [
        name
        for name, differs in (
            ("t_sub adaptive", sampler.is_adaptive),
            ("subject_noise item", sampler.subject_noise == "item"),
            ("subject_fit squash", sampler.subject_fit == "squash"),
            ("subject_crop face", sampler.subject_crop == "face"),
            (f"an adapter whose subject encoder is {encoder}", encoder != "frozen"),
        )
        if differs
    ]
    if reasons and any(features is not None for features in request.features):
        message = f"{request.key}: features cannot be known before with {', '.join(reasons)}; leave features empty"
        raise ItemError(ErrorCode.ROW_INVALID, message)


def fit_subject(picture: Picture, size_px: int, sampler: SamplerConfig) -> Picture:
    """A subject's picture as a square; see SamplerConfig.subject_fit. A square of that size comes back as it is."""
    return fit_square(picture, size_px) if sampler.subject_fit == "pad" else squash_square(picture, size_px)


def combine_subjects(features: Sequence[SubjectFeatures], mix: Sequence[float]) -> SubjectFeatures:
    """The features (batch 1) of a request's pictures as one: joined along the tokens (paper 3.1), or mixed."""
    return SubjectFeatures.mix(features, mix) if mix else SubjectFeatures.concatenate(features)


def encode_subject(
    encoder: SubjectEncoder,
    picture: Picture,
    subject_class: str,
    size_px: int,
    sampler: SamplerConfig,
    *,
    t: int = CLEAN,
    seed: int = 0,
    number: int = 0,
) -> SubjectFeatures:
    """Features (batch 1) of one picture, as a square of size_px; see SamplerConfig.subject_tokens.

    t: the timestep of the image, which counts where t_sub is adaptive; the noise is the same at all of them. seed: the
    item's, and number: that of the picture among its pictures, which count where subject_noise is item.
    """
    square = fit_subject(picture, size_px, sampler)
    seeds, number = ([seed], number) if sampler.subject_noise == "item" else (None, 0)
    features = encoder.encode(
        to_pixels(square.rgb)[None],
        [subject_class],
        t_sub=t if sampler.t_sub == "adaptive" else sampler.t_sub,
        seeds=seeds,
        number=number,
        template=sampler.subject_prompt,
    )
    return keep_tokens(features, square, sampler)


def keep_tokens(features: SubjectFeatures, square: Picture, sampler: SamplerConfig) -> SubjectFeatures:
    """The tokens of a picture, as it was encoded, that this sampler wants."""
    if sampler.subject_tokens == "all" or square.mask is None:
        return features
    return mask_background(features, torch.from_numpy(np.array(square.mask)) > 127)
