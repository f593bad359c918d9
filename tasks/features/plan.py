"""What a run of precompute_features would do: which shard stores what, what it will weigh, and what is missing."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ezigen.config import ConfigurationError, FeatureConfig, FeatureInputs, RayConfig, StackConfig
from tasks.features.budget import format_gib
from tasks.features.ownership import Kind, OwnershipBuilder, ShardOwnership, total
from tasks.features.pairs_set import PairsSet
from tasks.storage.folder import OutputFolder
from tasks.storage.locations import Locations

if TYPE_CHECKING:
    from tasks.features.estimates import Estimate
    from tasks.features.hardware import Hardware
    from tasks.features.identity import FeatureIdentity
    from tasks.features.kept_share import KeptShare
    from tasks.features.model_shape import ModelShape
    from tasks.features.writer import ShardFiles

logger = logging.getLogger(__name__)

FLOW = "precompute_features"


@dataclass(frozen=True)
class FeaturePlan:
    """What is to do. It holds less than one byte per pair."""

    inputs: FeatureInputs
    config: FeatureConfig
    model: StackConfig
    identity: "FeatureIdentity"
    estimate: "Estimate"
    """Of the whole store, what is stored already included."""
    pairs: PairsSet
    owned: Mapping[str, ShardOwnership] = field(repr=False)
    """By shard, in the order of names."""
    done: Mapping[str, "ShardFiles"] = field(repr=False)
    damaged: tuple[str, ...]
    """Shards that were stored and are not what was written; they are among `to_do`."""
    finished: bool
    """Whether nothing is left to do, not even the index and the manifest."""

    @property
    def shards(self) -> tuple[str, ...]:
        """All shards, by name."""
        return tuple(self.owned)

    @property
    def to_do(self) -> tuple[str, ...]:
        """Shards that are missing or damaged."""
        return tuple(shard for shard in self.owned if shard not in self.done)

    @property
    def num_pairs(self) -> int:
        """Pairs of the whole set."""
        return sum(one.num_pairs for one in self.owned.values())

    @property
    def num_subjects(self) -> int:
        """Distinct subjects of the whole set."""
        return self._total("subjects")

    @property
    def num_targets(self) -> int:
        """Distinct target pictures of the whole set."""
        return self._total("targets")

    @property
    def num_texts(self) -> int:
        """Distinct captions of the whole set."""
        return self._total("texts")

    @property
    def num_subjects_to_do(self) -> int:
        """Subjects of the shards that are missing or damaged."""
        return total((self.owned[shard] for shard in self.to_do), "subjects")

    def describe(self) -> list[tuple[str, str]]:
        """The plan as a table of two columns, for a terminal or a page."""
        rows = [
            ("pairs", f"{self.num_pairs:,}"),
            ("distinct subjects", f"{self.num_subjects:,}"),
            ("distinct target pictures", f"{self.num_targets:,}"),
            ("distinct captions", f"{self.num_texts:,}"),
            ("shards done", f"{len(self.done):,} of {len(self.owned):,}"),
            ("subjects to do", f"{self.num_subjects_to_do:,}"),
        ]
        if self.damaged:
            rows.append(("damaged shards, to be made again", f"{len(self.damaged):,} ({', '.join(self.damaged[:8])})"))
        return [*rows, *self.estimate.describe()]

    def _total(self, kind: Kind) -> int:
        return total(self.owned.values(), kind)


def plan_features(
    inputs: FeatureInputs,
    config: FeatureConfig,
    model: StackConfig,
    output: OutputFolder,
    locations: Locations | None = None,
    *,
    cluster: RayConfig | None = None,
    check: Callable[[], None] = lambda: None,
) -> FeaturePlan:
    """Reads what the pairs' files say of themselves, and of their pictures at most some masks; decides what is to do.

    Writes nothing.

    `locations` carries the storage options of the pairs, `cluster` says what the run would compute on, `check` is the
    lease's. Raises ConfigurationError if there is no finished set of pairs, if its pictures have another size than the
    model's, if the store would become larger than `inputs.max_gib`, or if the output holds other features or those of
    other pairs, naming what differs.
    """
    from ezigen.models import model_fingerprint
    from tasks.features.hardware import find_hardware, fit_cluster, network_dtype
    from tasks.features.identity import FeatureIdentity
    from tasks.features.model_shape import ModelShape
    from tasks.features.stored_plan import read_plan

    _check_output(inputs, output)
    pairs = PairsSet.open(inputs.pairs_uri, locations)
    shape = ModelShape.of(model.model)
    cluster = fit_cluster(cluster or RayConfig(), model)
    precision = network_dtype(model, cluster)
    identity = FeatureIdentity.of(model_fingerprint(model.model), shape, config, network_dtype=precision)
    _check_stored(identity, output)
    owned = read_plan(output, identity, pairs) or _decide(pairs, model, identity.size_px, check)
    check()
    done, damaged = find_done(output, identity, owned, verify=inputs.verify)
    kept = _find_kept(identity, pairs, owned, done)
    estimate = _estimate(owned, identity, shape, kept, find_hardware(model, cluster))
    plan = FeaturePlan(
        inputs=inputs,
        config=config,
        model=model,
        identity=identity,
        estimate=estimate,
        pairs=pairs,
        owned=owned,
        done=done,
        damaged=damaged,
        finished=len(done) == len(owned) and is_indexed(output, identity, done, verify=inputs.verify),
    )
    _check_budget(plan)
    return plan


def _decide(pairs: PairsSet, model: StackConfig, size_px: int, check: Callable[[], None]) -> dict[str, ShardOwnership]:
    """One look at the pairs' small columns."""
    from tasks.features.pair_ids import ID_COLUMNS, find_ids

    builder = OwnershipBuilder(pairs.num_pairs)
    for shard, table in pairs.read_columns(ID_COLUMNS):
        check()
        for found in table.column("size_px").unique().to_pylist():
            if found != size_px:
                raise ConfigurationError(
                    f"the pictures of the pairs at {pairs.folder.root_uri} are {found} px, but model {model.model} "
                    f"takes {size_px} px; build pairs with pairs.size_px={size_px}, or choose a model of {found} px."
                )
        builder.add(shard, find_ids(table))
    return builder.build()


def _estimate(
    owned: Mapping[str, ShardOwnership],
    identity: "FeatureIdentity",
    shape: "ModelShape",
    kept: "KeptShare | float",
    hardware: "Hardware",
) -> "Estimate":
    from tasks.features.estimates import estimate

    subjects, targets, texts = (total(owned.values(), kind) for kind in ("subjects", "targets", "texts"))
    return estimate(subjects, targets, texts, identity, kept, cost=shape.cost, hardware=hardware)


def _find_kept(
    identity: "FeatureIdentity",
    pairs: PairsSet,
    owned: Mapping[str, ShardOwnership],
    done: Mapping[str, "ShardFiles"],
) -> "KeptShare | float":
    """Which tokens a foreground store keeps: by masks of shards to do, or by what is stored if there are none."""
    from tasks.features.estimates import overhead_bytes, subject_bytes
    from tasks.features.kept_share import sample_kept_share
    from tasks.features.schema import SUBJECTS

    if identity.tokens != "foreground":
        return 1.0
    to_do = {shard: one for shard, one in owned.items() if shard not in done}
    share = sample_kept_share(pairs, to_do, identity.blocks)
    if share is not None:
        return share
    stored = [file for shard in done.values() for file in shard.files if file.path.startswith(f"{SUBJECTS}/")]
    num_rows = sum(file.rows for file in stored)
    numbers = sum(file.num_bytes for file in stored) - num_rows * overhead_bytes(SUBJECTS, identity)
    return min(1.0, max(0.0, numbers / (num_rows * subject_bytes(identity, 1.0)))) if num_rows else 1.0


# ---- what must not be


def _check_output(inputs: FeatureInputs, output: OutputFolder) -> None:
    """Nothing else lies where the store goes."""
    if OutputFolder(inputs.pairs_uri).root == output.root:
        raise ConfigurationError(f"output_uri {output.root_uri} is pairs_uri too; choose another folder for the store.")
    previous = output.read_run()
    if previous is not None and previous.flow != FLOW:
        raise ConfigurationError(
            f"output_uri {output.root_uri} holds what {previous.flow} made; choose a folder of its own for the store."
        )


def _check_stored(identity: "FeatureIdentity", output: OutputFolder) -> None:
    from tasks.features.manifest import read_store

    stored = read_store(output)
    if stored is not None:
        stored.check(identity, f"the feature store at {output.root_uri}")


def _check_budget(plan: FeaturePlan) -> None:
    limit = plan.inputs.max_gib
    wanted = plan.estimate.total_bytes / 2**30
    if limit and wanted > limit and plan.to_do:
        raise ConfigurationError(
            f"the feature store would have about {format_gib(wanted)} GiB, more than inputs.max_gib allows "
            f"({format_gib(limit)}); raise it, or store less with features.dtype=fp8, features.tokens=foreground or "
            "features.policy=latents."
        )


# ---- what is there


def find_done(
    output: OutputFolder, identity: "FeatureIdentity", owned: Mapping[str, ShardOwnership], *, verify: bool = False
) -> tuple[dict[str, "ShardFiles"], tuple[str, ...]]:
    """What is done, and what was done once and is damaged."""
    from tasks.features.manifest import find_done_shards
    from tasks.features.schema import SAMPLES

    found = find_done_shards(output, identity, verify=verify)
    done = {shard: found[shard] for shard in owned if shard in found}
    stored = {name.removesuffix(".parquet") for name in output.list(SAMPLES)}
    return done, tuple(shard for shard in owned if shard in stored and shard not in done)


def is_indexed(
    output: OutputFolder, identity: "FeatureIdentity", done: Mapping[str, "ShardFiles"], *, verify: bool = False
) -> bool:
    """Whether manifest.json and index.parquet are those of these shards."""
    from tasks.features.manifest import INDEX_PATH, read_manifest

    try:
        manifest = read_manifest(output)
    except ConfigurationError as error:
        logger.warning("%s It is written again.", error)
        return False
    if manifest is None or manifest[0] != identity or {shard.name: shard for shard in manifest[1]} != done:
        return False
    index = manifest[2]
    if output.list("").get(INDEX_PATH) != index.num_bytes:
        return False
    return not verify or _checksum(output.read(INDEX_PATH)) == index.xxh3


def _checksum(data: bytes) -> str:
    import xxhash

    return str(xxhash.xxh3_128_hexdigest(data))
