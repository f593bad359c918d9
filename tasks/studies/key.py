"""The key of a study: which label stands for which method. Raters never see it."""

from typing import Literal

import msgspec

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
