"""plan.parquet: which shard of a store stores what, and of which pairs the store is."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ezigen.config import ConfigurationError
from tasks.features.identity import FeatureIdentity
from tasks.features.ownership import KINDS, ShardOwnership
from tasks.features.pairs_set import PairsSet
from tasks.features.schema import IDENTITY_KEY, file_metadata
from tasks.features.writer import to_parquet
from tasks.storage.filesystems import describe_error
from tasks.storage.folder import OutputFolder

PLAN_PATH = "plan.parquet"

_PAIRS_KEY, _PAIRS_URI_KEY = b"ezigen.pairs", b"ezigen.pairs_uri"
_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("pairs", pa.int64(), nullable=False),
        *(pa.field(kind, pa.int64(), nullable=False) for kind in KINDS),
        *(pa.field(f"owns_{kind}", pa.binary(), nullable=False) for kind in KINDS),
    ]
)
"""Per shard, by name: how many pairs it has, how many subjects, targets and texts it stores, and for each pair one bit
that says whether the shard stores its subject (target, text), the first pair in the highest bit."""


def write_plan(
    output: OutputFolder, identity: FeatureIdentity, pairs: PairsSet, owned: dict[str, ShardOwnership]
) -> None:
    """Stores the plan, which a run does before its first shard."""
    rows = [
        {
            "shard": shard,
            "pairs": one.num_pairs,
            **one.counts,
            **{f"owns_{kind}": one.bits[kind] for kind in KINDS},
        }
        for shard, one in owned.items()
    ]
    said = {_PAIRS_KEY: pairs.digest.encode(), _PAIRS_URI_KEY: pairs.folder.root_uri.encode()}
    table = pa.Table.from_pylist(rows, _SCHEMA).replace_schema_metadata(file_metadata("plan", identity) | said)
    output.write(PLAN_PATH, to_parquet(table))


def read_plan(output: OutputFolder, identity: FeatureIdentity, pairs: PairsSet) -> dict[str, ShardOwnership] | None:
    """By shard, in the order of names; None if there is no plan yet.

    Raises ConfigurationError for the plan of other pairs, because their shards hold other subjects, and for a damaged
    one.
    """
    uri = output.uri(PLAN_PATH)
    try:
        table = pq.read_table(pa.BufferReader(output.read(PLAN_PATH)), page_checksum_verification=True)
        said = table.schema.metadata
        found, found_uri, found_identity = (said[key].decode() for key in (_PAIRS_KEY, _PAIRS_URI_KEY, IDENTITY_KEY))
        rows = table.select(_SCHEMA.names).cast(_SCHEMA).to_pylist()
    except FileNotFoundError:
        return None
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{uri} cannot be read ({describe_error(error)}); delete it, and the next run makes it again."
        ) from error
    if found != pairs.digest:
        raise ConfigurationError(
            f"the feature store at {output.root_uri} holds the features of other pairs ({found_uri}, digest {found}) "
            f"than those at {pairs.folder.root_uri} (digest {pairs.digest}); choose another output."
        )
    if found_identity != identity.digest():
        raise ConfigurationError(f"{uri} belongs to other features than store.json; delete it and run again.")
    return {row["shard"]: _to_ownership(row) for row in rows}


def _to_ownership(row: dict[str, Any]) -> ShardOwnership:
    bits = {kind: row[f"owns_{kind}"] for kind in KINDS}
    return ShardOwnership(row["pairs"], bits, {kind: row[kind] for kind in KINDS})
