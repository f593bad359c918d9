"""Subject pictures to the tokens that adapters attend to."""

from ezigen.subject.encoder import SUBJECT_PROMPT, SubjectEncoder, encode_latents
from ezigen.subject.features import SubjectFeatures
from ezigen.subject.learned import LearnedEncoder, ProjectedTokens, TrainedUNet
from ezigen.subject.norms import record_norms

__all__ = [
    "SUBJECT_PROMPT",
    "LearnedEncoder",
    "ProjectedTokens",
    "SubjectEncoder",
    "SubjectFeatures",
    "TrainedUNet",
    "encode_latents",
    "record_norms",
]
