"""The key of a study: which label stands for which method. Raters never see it."""

from typing import Any, Literal

import msgspec

from ezigen.config import ConfigurationError

KEY_FORMAT: Literal["ezigen-study-key/1"] = "ezigen-study-key/1"
NO_DIFFERENCE = "none"
"""The choice of a rater who sees no difference."""


class KeyCase(msgspec.Struct, frozen=True):
    """A case under its opaque name, the item it stands for, and label -> method."""

    case: str
    item: str
    labels: dict[str, str]


class StudyKey(msgspec.Struct, frozen=True):
    """What turns answers into shares of methods."""

    format: Literal["ezigen-study-key/1"]
    study: str
    methods: dict[str, str]
    """Method -> where its images lay."""
    questions: dict[str, str]
    """Question -> its wording."""
    seed: int
    made_at: str
    cases: list[KeyCase]


def decode_file(data: bytes, name: str, kind: type[Any], what: str) -> Any:
    """A JSON file as a struct. Raises ConfigurationError that names the file and the place in it."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name} is not {what} ({error}); export or copy it again.") from error


def to_bytes(value: msgspec.Struct) -> bytes:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
