"""What an inspection shows: facts, tables and pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """A small table with a title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SavedPicture:
    """A picture file to be saved under a name."""

    name: str
    data: bytes


@dataclass(frozen=True)
class View:
    """What lies at a location, or what one item of it is."""

    title: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...] = ()
    pictures: tuple[SavedPicture, ...] = field(default=(), repr=False)


def schema_table(title: str, schema: pa.Schema, notes: Mapping[str, str] | None = None) -> Table:
    """The columns of a stored table; `notes` say more about some of them."""
    said = notes or {}
    rows = tuple((f.name, _type_name(f.type), said.get(f.name, "")) for f in schema)
    return Table(title, ("column", "type", ""), rows)


def counts_table(title: str, name: str, counts: Mapping[str, int], max_rows: int = 20) -> Table:
    """Counts by name, the largest first; what does not fit is summed up."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [(key, f"{count:,}") for key, count in ordered[:max_rows]]
    if rest := ordered[max_rows:]:
        rows.append((f"{len(rest):,} others", f"{sum(count for _, count in rest):,}"))
    return Table(title, (name, "rows"), tuple(rows))


def settings_facts(label: str, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A configuration as one fact: t_sub 1, dtype fp16; nested ones with dots. None for an empty one."""
    text = ", ".join(f"{name} {value}" for name, value in _flatten(values))
    return [(label, text)] if text else []


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_binary(kind):
        return f"{kind.byte_width:,} bytes"
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.value_type}[{kind.list_size}]"
    return str(kind)
