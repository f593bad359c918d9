"""Where the parts of a set of pairs lie, and Parquet as all of them are written."""

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ezigen.config import ConfigurationError
from tasks.storage.filesystems import describe_error
from tasks.storage.folder import OutputFolder

PLAN_PATH = "plan/plan.json"
MANIFEST_PATH = "manifest.json"
FOLDERS = ("plan", "units", "refusals", "pairs")
KIND, IDENTITY = "ezigen.kind", "ezigen.identity"

_BINARY = ("subject", "subject_mask", "target")
"""Columns that hold compressed pictures already."""


def shard_name(round_number: int, index: int) -> str:
    """r0-00012"""
    return f"r{round_number}-{index:05d}"


def plan_path(shard: str) -> str:
    """The units of a shard."""
    return f"plan/{shard}.parquet"


def pairs_path(shard: str) -> str:
    """The pairs of a shard: once it exists, the shard is done."""
    return f"pairs/{shard}.parquet"


def refusals_path(shard: str) -> str:
    """The refused candidates of a shard, written before its pairs."""
    return f"refusals/{shard}.parquet"


DEFECTS_PATH = "refusals/annotations.parquet"
"""What is wrong with the annotations; there if anything is."""


def to_parquet(groups: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, str]) -> bytes:
    """Parquet bytes that depend on the rows alone; one row group for each of the tables."""
    sink = io.BytesIO()
    described = schema.with_metadata(dict(metadata))
    compression = {name: "none" if name in _BINARY else "zstd" for name in _leaves(schema)}
    with pq.ParquetWriter(
        sink,
        described,
        compression=compression,
        use_dictionary=[name for name in schema.names if name not in _BINARY],
        write_statistics=[name for name in schema.names if name not in _BINARY],
        write_page_checksum=True,
    ) as writer:
        for table in groups:
            writer.write_table(table.cast(described), row_group_size=max(1, len(table)))
    return sink.getvalue()


def read_parquet(output: OutputFolder, path: str, identity: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of one small object of the output.

    Raises FileNotFoundError; ConfigurationError if it is damaged or belongs to another plan, naming it.
    """
    data = output.read(path)
    try:
        table = pq.read_table(pa.BufferReader(data), columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigurationError(
            f"{output.uri(path)} is damaged ({describe_error(error)}); delete {output.root_uri} or choose another."
        ) from error
    check_identity(output.uri(path), table.schema, identity)
    return table


def check_identity(uri: str, schema: pa.Schema, identity: str) -> None:
    """Raises ConfigurationError if an object was written for another plan."""
    found = (schema.metadata or {}).get(IDENTITY.encode(), b"").decode()
    if found != identity:
        raise ConfigurationError(
            f"{uri} belongs to another plan ({found or 'none is named'} instead of {identity}); "
            "choose another output, or delete it and run again."
        )


def read_json(output: OutputFolder, path: str) -> dict[str, Any] | None:
    """A JSON object of the output; None where there is none. Raises ConfigurationError if it cannot be understood."""
    try:
        values = json.loads(output.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigurationError(
            f"{output.uri(path)} cannot be read ({describe_error(error)}); delete it or choose another output."
        ) from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{output.uri(path)} does not hold an object; delete it or choose another output.")
    return values


def write_json(output: OutputFolder, path: str, values: Mapping[str, Any]) -> str:
    """Stores a JSON object and returns its location."""
    return output.write(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def take_kind(values: dict[str, Any], kind: str, version: int) -> dict[str, Any]:
    """The values without their kind and version. Raises ValueError if those are others."""
    if (values.get("kind"), values.get("version")) != (kind, version):
        raise ValueError(f"it is {values.get('kind')!r}, version {values.get('version')!r}")
    return {name: value for name, value in values.items() if name not in ("kind", "version")}


def _leaves(schema: pa.Schema) -> list[str]:
    """Column paths as Parquet names them: those of lists end in list.element."""
    return [f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name for field in schema]
