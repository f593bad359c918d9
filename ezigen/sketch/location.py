"""Which files a sketch model is, whether they can be one, and what tells them from others. Imports no torch."""

from ezigen.config import ConfigurationError, SamplerConfig, SketchConfig
from ezigen.config.base import digest_values
from ezigen.models import pipeline_folder
from ezigen.models.fingerprint import fingerprint_files, sam_fingerprint
from ezigen.models.pipeline_folder import PipelineFolder


def find_pipeline(model: str) -> PipelineFolder:
    """The pipeline that draws, downloaded if need be.

    Raises ConfigurationError, with a remedy, for a missing, incomplete or pickled one.
    """
    return pipeline_folder.find_pipeline(model, role="sketch model", option="--sketch-model")


def sketch_fingerprint(config: SketchConfig, sampler: SamplerConfig) -> str:
    """32 hex digits of all that a drawn picture, and what becomes of it, depend on beside the row and what every image
    depends on: the pipeline's files, SAM's, the configuration and the sampler's `edit`. "" without a sketch model.

    Raises ConfigurationError like `find_pipeline`. Reads every file once (about 1 s per GB).
    """
    if not config.draws:
        return ""
    folder = find_pipeline(config.model)
    values = {
        "config": config.model_dump(mode="json", exclude={"model", "sam_model"}),
        "fast": folder.is_fast,
        "model": fingerprint_files(folder.path, folder.files),
        "sam": sam_fingerprint(config.sam_model) if config.region == "sam" else "",
        "edit": sampler.edit.digest(),
    }
    return digest_values(values)


def check_sketch(config: SketchConfig, sampler: SamplerConfig) -> None:
    """Raise ConfigurationError where a sketch model contradicts the sampler."""
    if config.draws and sampler.mode == "text_only":
        raise ConfigurationError(
            "mode text_only transfers nothing into a sketch model's pictures; use another mode, or no sketch model"
        )
