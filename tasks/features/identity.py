"""What makes stored features the ones that are wanted, and the keys of what is stored."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ezigen.config import ConfigurationError, FeatureConfig
from ezigen.subject import SUBJECT_PROMPT
from tasks.features.model_shape import BlockLayout, ModelShape

_AGAIN = "write another store with precompute_features for it, or use the store that was made with it"
_REMEDIES = {
    "model_fingerprint": f"use the model that the store was made with, or {_AGAIN}",
    "size_px": f"use pictures of that size, or {_AGAIN}",
    "network_dtype": f"set model.dtype to what the store was made with, or {_AGAIN}",
}
_NAMES = {"model_fingerprint": "model"}

PREPROCESSING = 1
"""Raised when the same stored picture, mask or text reaches the networks as other numbers than before, or other tokens
are kept: decoding, scaling to [-1, 1], cutting targets again, tokenizing, touched cells."""


@dataclass(frozen=True, kw_only=True)
class FeatureIdentity:
    """Everything that a stored number depends on beside the picture and the text that it was made of.

    Two stores with equal identities hold equal features for equal subjects; nothing else may be mixed.
    """

    model_fingerprint: str
    t_sub: int
    size_px: int
    """Side of the pictures that were encoded."""
    policy: str
    """features: the tokens of every block; latents: the subject's latent only."""
    dtype: str
    """fp16, bf16 or fp8, in which the tokens are stored."""
    network_dtype: str
    """fp32, bf16 or fp16, in which the networks computed them."""
    tokens: str
    """all, or foreground: those that the subject's mask touches."""
    text_embeddings: bool
    latent_shape: tuple[int, int, int]
    """Channels, height, width."""
    text_shape: tuple[int, int]
    """Tokens of a text, and channels of their embeddings."""
    blocks: tuple[BlockLayout, ...]
    """In the order of registration; empty for policy latents."""
    template: str = SUBJECT_PROMPT
    preprocessing: int = PREPROCESSING
    pooled_channels: int = 0
    """Channels of a text's pooled embedding (Stable Diffusion XL); 0: the model takes none."""

    @property
    def num_token_ids(self) -> int:
        """Token ids of a text: with pooled embeddings there are two text encoders, and each has its own."""
        return self.text_shape[0] * (2 if self.pooled_channels else 1)

    @classmethod
    def of(
        cls,
        fingerprint: str,
        shape: ModelShape,
        config: FeatureConfig,
        *,
        network_dtype: str,
        template: str = SUBJECT_PROMPT,
    ) -> "FeatureIdentity":
        """The identity of a store that this configuration makes with a model, whose networks have this precision."""
        latents_only = config.policy == "latents"
        return cls(
            model_fingerprint=fingerprint,
            t_sub=config.t_sub,
            size_px=shape.size_px,
            policy=config.policy,
            dtype=config.dtype,
            network_dtype=network_dtype,
            tokens="all" if latents_only else config.tokens,
            text_embeddings=config.text_embeddings,
            latent_shape=shape.latent_shape,
            text_shape=shape.text_shape,
            blocks=() if latents_only else shape.blocks,
            template=template,
            pooled_channels=shape.pooled_channels,
        )

    def digest(self) -> str:
        """32 hex digits that depend on the values alone."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    def check(self, expected: "FeatureIdentity | Mapping[str, Any]", where: str = "the feature store") -> None:
        """Compares this identity with a whole one, or with some of its fields by name.

        Raises ConfigurationError that names the first field that differs, both values and the remedy; ValueError for
        a field that does not exist.
        """
        if isinstance(expected, FeatureIdentity):
            expected = {field.name: getattr(expected, field.name) for field in fields(expected)}
        for name, wanted in expected.items():
            if name not in _FIELDS:
                raise ValueError(f"a feature store has no field {name!r}; it has {', '.join(_FIELDS)}")
            found = getattr(self, name)
            if found != wanted:
                raise ConfigurationError(_differs(name, found, wanted, where))

    def to_json(self) -> dict[str, Any]:
        """As store.json and manifest.json hold it; pooled_channels only where there are any."""
        values = asdict(self)
        if not self.pooled_channels:
            del values["pooled_channels"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The reverse. Raises KeyError, TypeError or ValueError for anything else."""
        given = dict(values)
        channels, height, width = given.pop("latent_shape")
        num_text_tokens, num_text_channels = given.pop("text_shape")
        return cls(
            blocks=tuple(BlockLayout(**block) for block in given.pop("blocks")),
            latent_shape=(channels, height, width),
            text_shape=(num_text_tokens, num_text_channels),
            **given,
        )


_FIELDS = tuple(field.name for field in fields(FeatureIdentity))


def _differs(name: str, found: Any, wanted: Any, where: str) -> str:
    shown = _NAMES.get(name, name)
    remedy = _REMEDIES.get(name, _AGAIN)
    if name == "blocks":
        found, wanted = f"{len(found)} blocks: {_shown(found)}", f"{len(wanted)}: {_shown(wanted)}"
    return f"{where} was made with {shown} {found}, but {shown} {wanted} is wanted; {remedy}."


def _shown(blocks: tuple[BlockLayout, ...]) -> str:
    return ", ".join(f"{b.num_tokens}x{b.num_channels}" for b in blocks)


def subject_id(picture_sha256: str, subject_class: str) -> str:
    """32 hex digits of a subject: the SHA-256 (hex) of its stored picture, and its class, which is in the prompt."""
    return hashlib.blake2b(f"{picture_sha256}\n{subject_class}".encode(), digest_size=16).hexdigest()


def picture_id(picture_sha256: str) -> str:
    """32 hex digits of a picture: half of the SHA-256 (hex) of its bytes."""
    return picture_sha256[:32]


def text_id(text: str) -> str:
    """32 hex digits of a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
