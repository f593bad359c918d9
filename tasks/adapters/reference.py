"""How people write a published adapter: NAME@ALIAS, NAME@VERSION, or NAME for its alias `latest`."""

import re
from dataclasses import dataclass
from typing import Self

from ezigen.config import ConfigurationError
from ezigen.config.training import NAME_PATTERN

LATEST = "latest"

_NAME = re.compile(NAME_PATTERN)
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class AdapterReference:
    """A name, and the version or alias behind its "@"."""

    name: str
    label: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigurationError for what cannot be a name, a version or an alias."""
        name, sign, label = text.partition("@")
        label = label if sign else LATEST
        check_name(name)
        if version_number(label) is None:
            check_alias(label)
        return cls(name, label)


def is_reference(location: str) -> bool:
    """Whether an adapter setting has the form NAME@ALIAS or NAME@VERSION; ./NAME@ALIAS means a folder."""
    return "@" in location and not any(sign in location for sign in "/\\:")


def version_number(label: str) -> int | None:
    """3 for v3; None for what is not a version."""
    match = _VERSION.fullmatch(label)
    return int(match[1]) if match else None


def is_name(text: str) -> bool:
    """Whether this can name an adapter."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Raises ConfigurationError for what cannot name an adapter."""
    if not is_name(name):
        raise ConfigurationError(
            f"adapter name {name!r}: use lower-case letters, digits, dots, dashes and underscores, at most 63, and "
            "begin with a letter or digit."
        )


def check_alias(alias: str) -> None:
    """Raises ConfigurationError for what cannot be an alias; v3 cannot, because it means a version."""
    if version_number(alias) is not None:
        raise ConfigurationError(f"alias {alias!r} would be taken for a version; choose another word.")
    if not _ALIAS.fullmatch(alias):
        raise ConfigurationError(
            f"alias {alias!r}: use lower-case letters, digits, dots, dashes and underscores, at most 63, and begin "
            "with a letter; a version is written v1, v2, ..."
        )
