"""What every configuration model shares."""

import hashlib
import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


def number_fields(schema: dict[str, Any]) -> None:
    """Gives every field of a JSON schema its position, which forms sort by.

    The order of the fields themselves is lost where a schema is stored as JSONB (Prefect's server on PostgreSQL).
    """
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class Config(BaseModel):
    """A frozen, closed configuration: an unknown field is an error, and equal values have equal digests."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra=number_fields,
    )

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that are younger than stored digests. At their default they say nothing, so that those digests hold."""

    def identity(self) -> dict[str, Any]:
        """Everything that these values decide, as plain values: equal before and after a field was added."""
        values = self.model_dump(mode="json")
        for name, value in self:
            if isinstance(value, Config):
                values[name] = value.identity()
            if name in self.LATER and value == type(self).model_fields[name].get_default(call_default_factory=True):
                del values[name]
        return values

    def digest(self) -> str:
        """32 hex digits that depend on the values alone: the same on every machine and in every process."""
        return digest_values(self.identity())


def digest_values(values: dict[str, Any]) -> str:
    """32 hex digits of plain values by name, in whatever order they are."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
