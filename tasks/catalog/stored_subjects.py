"""Subject features that a feature store holds already, for the pictures of a catalog."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ezigen.config import ConfigurationError

if TYPE_CHECKING:
    from ezigen.config import SamplerConfig
    from ezigen.engine.cache import Cache
    from ezigen.subject import SubjectFeatures
    from tasks.features import FeatureStore
    from tasks.storage import Locations

_CACHED_BYTES = 512 * 2**20
"""Features that a worker keeps: the rows of one subject mostly come one after the other."""


@dataclass(frozen=True)
class SubjectSource:
    """A feature store, and what it has to be made with to be of use. Small; opened where it is read."""

    uri: str
    locations: "Locations"
    expect: Mapping[str, Any]

    @classmethod
    def of(
        cls, uri: str, locations: "Locations", sampler: "SamplerConfig", *, model: str, model_fingerprint: str
    ) -> "SubjectSource":
        """The store for runs of this model and sampler. Raises ConfigurationError for a sampler whose subjects no
        store can hold.
        """
        from tasks.features import ModelShape

        _check_storable(sampler)
        expect = {
            "model_fingerprint": model_fingerprint,
            "size_px": ModelShape.of(model).size_px,
            "t_sub": sampler.t_sub,
            "template": sampler.subject_prompt,
            "policy": "features",
            "tokens": "all",
        }
        return cls(uri, locations, expect)

    def open(self) -> "StoredSubjects":
        """Raises ConfigurationError for a store that is missing, unfinished, or made with something else."""
        from ezigen.engine.cache import Cache
        from tasks.features import FeatureStore

        store = FeatureStore.open(self.uri, self.locations, expect=self.expect)
        return StoredSubjects(store, Cache(_CACHED_BYTES))


def _check_storable(sampler: "SamplerConfig") -> None:
    """Stored features were made once, of whole, padded pictures with one noise."""
    for name, only in (
        ("t_sub", not sampler.is_adaptive),
        ("subject_noise", sampler.subject_noise == "fixed"),
        ("subject_fit", sampler.subject_fit == "pad"),
        ("subject_crop", sampler.subject_crop == "none"),
    ):
        if not only:
            raise ConfigurationError(
                f"sampler.{name} {getattr(sampler, name)}: a feature store holds no such features; leave "
                "inputs.features_uri empty"
            )


@dataclass(eq=False)
class StoredSubjects:
    """Looks features up by what a picture file holds. Several threads may ask at once."""

    store: "FeatureStore"
    _kept: "Cache[str, SubjectFeatures]"
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, picture_file: bytes, subject_class: str) -> "SubjectFeatures | None":
        """Features (batch 1) of a picture by its file's bytes and the subject's class; None if there are none.

        Raises ConfigurationError where the store is damaged.
        """
        from tasks.features import subject_id

        key = subject_id(hashlib.sha256(picture_file).hexdigest(), subject_class)
        with self._lock:
            found = self._kept.get(key)
        if found is None:
            try:
                found = self.store.read_subject(key)
            except KeyError:
                return None
            with self._lock:
                self._kept.put(key, found, sum(tokens.nbytes for tokens in found.tokens.values()))
        return found
