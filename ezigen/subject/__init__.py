"""Subject pictures to the tokens that adapters attend to."""

from ezigen.subject.encoder import SUBJECT_PROMPT, SubjectEncoder, encode_latents, record_norms
from ezigen.subject.features import SubjectFeatures

__all__ = ["SUBJECT_PROMPT", "SubjectEncoder", "SubjectFeatures", "encode_latents", "record_norms"]
