"""store.json, manifest.json, and which shards of a store are finished."""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ezigen.config import ConfigurationError
from tasks.features.identity import FeatureIdentity
from tasks.features.index import merge_index
from tasks.features.schema import FILES_KEY, IDENTITY_KEY, INDEX, SAMPLES, TABLES, file_metadata
from tasks.features.writer import ShardFiles, to_parquet
from tasks.storage.filesystems import classify, describe_error, with_retries
from tasks.storage.folder import OutputFolder
from tasks.storage.stored_file import StoredFile

KIND, VERSION = "features", 2
STORE_PATH, INDEX_PATH, MANIFEST_PATH = "store.json", "index.parquet", "manifest.json"
_CHUNK_BYTES = 8 * 2**20
_PARALLEL_READS = 8


def write_store(output: OutputFolder, identity: FeatureIdentity, *, row_group_mib: int = 0) -> None:
    """Stores store.json, which a run writes before anything else."""
    content = {
        "kind": KIND,
        "version": VERSION,
        "digest": identity.digest(),
        "identity": identity.to_json(),
        "layout": {"row_group_mib": row_group_mib},
    }
    output.write(STORE_PATH, _to_json(content))


def read_store(output: OutputFolder) -> FeatureIdentity | None:
    """The identity in store.json, None where there is none. Raises ConfigurationError if it cannot be understood."""
    content = _read_json(output, STORE_PATH)
    return None if content is None else _identity(output, STORE_PATH, content)


def find_done_shards(output: OutputFolder, identity: FeatureIdentity, *, verify: bool = False) -> dict[str, ShardFiles]:
    """The finished shards by name: samples/<shard>.parquet exists, and the objects it vouches for have their sizes.

    verify: compares every object's checksum too, which reads the whole store. A shard of another identity, a damaged
    or an incomplete one is left out: it is to be made again.
    """
    sizes = {f"{folder}/{name}": size for folder in (*TABLES, INDEX) for name, size in output.list(folder).items()}
    recorded = {shard.name: shard for shard in _recorded_shards(output)}
    names = [name.removesuffix(".parquet") for name in output.list(SAMPLES) if name.endswith(".parquet")]

    def look(name: str) -> ShardFiles | None:
        shard = _vouched_shard(output, identity, name)
        if shard is None or any(sizes.get(file.path) != file.num_bytes for file in shard.files[:-1]):
            return None
        if verify and (recorded.get(name, shard) != shard or find_damage(output, shard)):
            return None
        return shard

    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="done-shards") as pool:
        return {shard.name: shard for shard in pool.map(look, sorted(names)) if shard is not None}


def find_damage(output: OutputFolder, shard: ShardFiles) -> str | None:
    """The path of the first object of a shard that is missing or whose bytes are not those that were written."""
    return next((file.path for file in shard.files if _checksum(output, file.path) != file.xxh3), None)


def write_index(output: OutputFolder, identity: FeatureIdentity, shards: Mapping[str, ShardFiles]) -> None:
    """Stores index.parquet and then manifest.json, which makes the store readable; `shards` are all of its shards."""
    ordered = [shards[name] for name in sorted(shards)]
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="read-index") as pool:
        parts = list(pool.map(lambda shard: _read_part(output, shard.name), ordered))
    merged = merge_index(parts).replace_schema_metadata(file_metadata(INDEX, identity))
    data = to_parquet(merged)
    output.write(INDEX_PATH, data)
    index = StoredFile(INDEX_PATH, len(data), len(merged), xxhash.xxh3_128_hexdigest(data))
    output.write(MANIFEST_PATH, _manifest(identity, ordered, index))


def read_manifest(output: OutputFolder) -> tuple[FeatureIdentity, list[ShardFiles], StoredFile] | None:
    """Identity, shards and index of a finished store; None where there is none."""
    content = _read_json(output, MANIFEST_PATH)
    if content is None:
        return None
    try:
        identity = _identity(output, MANIFEST_PATH, content)
        return identity, [_shard(values) for values in content["shards"]], StoredFile.from_json(content["index"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise _unreadable(output, MANIFEST_PATH, error) from error


def _manifest(identity: FeatureIdentity, shards: Iterable[ShardFiles], index: StoredFile) -> bytes:
    listed: list[dict[str, Any]] = [
        {"name": shard.name, "rows": shard.rows, "files": [file.to_json() for file in shard.files]} for shard in shards
    ]
    content = {
        "kind": KIND,
        "version": VERSION,
        "digest": identity.digest(),
        "identity": identity.to_json(),
        "rows": sum(shard["rows"] for shard in listed),
        "index": index.to_json(),
        "shards": listed,
    }
    return _to_json(content)


def _shard(values: Mapping[str, Any]) -> ShardFiles:
    files = tuple(StoredFile.from_json(file) for file in values["files"])
    return ShardFiles(str(values["name"]), int(values["rows"]), files)


def _recorded_shards(output: OutputFolder) -> list[ShardFiles]:
    try:
        manifest = read_manifest(output)
    except ConfigurationError:  # it is written anew at the end of a run
        return []
    return [] if manifest is None else manifest[1]


def _vouched_shard(output: OutputFolder, identity: FeatureIdentity, name: str) -> ShardFiles | None:
    """What a completion object says of its shard; None if it is damaged or of another identity."""
    relative = f"{SAMPLES}/{name}.parquet"
    data = output.read(relative)
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        metadata = table.schema.metadata
        if metadata[IDENTITY_KEY] != identity.digest().encode():
            return None
        files = [StoredFile.from_json(values) for values in json.loads(metadata[FILES_KEY])]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    files.append(StoredFile(relative, len(data), len(table), xxhash.xxh3_128_hexdigest(data)))
    return ShardFiles(name, len(table), tuple(files))


def _checksum(output: OutputFolder, relative: str) -> str | None:
    """XXH3-128 of an object's bytes, read in pieces; None if it is missing."""
    filesystem, path = output.filesystem, output.path(relative)

    def read() -> str:
        digest = xxhash.xxh3_128()
        with filesystem.open(path, "rb", block_size=_CHUNK_BYTES, cache_type="readahead") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    try:
        return with_retries(read, f"reading {output.uri(relative)}")
    except FileNotFoundError:
        return None


def _read_part(output: OutputFolder, name: str) -> pa.Table:
    relative = f"{INDEX}/{name}.parquet"
    try:
        return pq.read_table(pa.BufferReader(output.read(relative)), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if not isinstance(error, pa.ArrowException) and classify(error) not in ("permanent", "missing"):
            raise
        raise ConfigurationError(
            f"{output.uri(relative)} is damaged ({describe_error(error)}); run precompute_features with verify on this "
            "store, which makes damaged shards again."
        ) from error


def _identity(output: OutputFolder, relative: str, content: Mapping[str, Any]) -> FeatureIdentity:
    if content.get("kind") != KIND:
        raise ConfigurationError(
            f"{output.uri(relative)} is of kind {content.get('kind')!r}, not of a feature store; "
            "give the folder that precompute_features wrote."
        )
    if content.get("version") != VERSION:
        raise ConfigurationError(
            f"{output.uri(relative)} has version {content.get('version')!r}, this package reads {VERSION}; "
            "use the package that wrote the store, or write another store."
        )
    try:
        return FeatureIdentity.from_json(content["identity"])
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(output, relative, error) from error


def _read_json(output: OutputFolder, relative: str) -> dict[str, Any] | None:
    try:
        content = json.loads(output.read(relative))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _unreadable(output, relative, error) from error
    if not isinstance(content, dict):
        raise _unreadable(output, relative, TypeError("not an object"))
    return content


def _unreadable(output: OutputFolder, relative: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{output.uri(relative)} cannot be understood ({describe_error(error)}); restore it from a backup, or run "
        "precompute_features into another folder."
    )


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
