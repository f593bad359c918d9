"""What another model that draws the scenes changes about a catalog run."""

from ezigen.config import ModelConfig
from tasks.catalog.rows import digest_hex, to_canonical
from tasks.cluster.model_memory import stored_memory_bytes, worker_memory_bytes


def with_sketch(sampler_digest: str, sketch_fingerprint: str) -> str:
    """The digest of the sampler together with the model that draws for it; as it is where there is none, so that the
    keys of such items do not know of sketch models.
    """
    if not sketch_fingerprint:
        return sampler_digest
    return digest_hex(to_canonical(["ezigen-sketch/1", sampler_digest, sketch_fingerprint]))


def memory_of_worker(model: ModelConfig) -> int:
    """Bytes of main memory that a worker takes with the model and all that draws for it; 0 if it cannot be told."""
    own = worker_memory_bytes(model.model)
    if not own or not model.sketch.draws:
        return own
    return own + stored_memory_bytes(model.sketch.model)
