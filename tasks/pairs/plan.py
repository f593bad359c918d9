"""What a run of build_pairs would do: which candidates become pairs, and in which shards."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ezigen.config import ConfigurationError, PairConfig, PairInputs
from ezigen.pairs import SELECTION, RefusalReason
from tasks.datasets.defects import Defect
from tasks.datasets.units import Unit
from tasks.pairs.defects import DefectList
from tasks.pairs.layout import DEFECTS_PATH, MANIFEST_PATH, PLAN_PATH
from tasks.pairs.manifest import PairsManifest
from tasks.pairs.sources import DataSet, Setting, digest_settings, list_settings, open_data_sets
from tasks.pairs.stored_plan import StoredPlan, StoredSource, plan_round, remove_other_objects
from tasks.pairs.units import UnitSpool, store_units
from tasks.storage import Locations, OutputFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourcePlan:
    """One source: `candidates` of the data set at most, `wanted` by the inputs, `planned` in all rounds so far."""

    candidates: int
    wanted: int
    planned: int
    groups: int
    """Pictures (COCO) or objects of videos (YouTube-VIS) with at least one candidate."""
    not_selected: Mapping[str, int] = field(default_factory=dict)
    """Objects that the selection left out, by reason."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Annotations that are wrong, by reason; refusals/annotations.parquet lists them."""


@dataclass(frozen=True)
class PairPlan:
    """What is to do. The units themselves lie in plan/<shard>.parquet of the output, once they are stored."""

    identity: str
    """Digest of what decides about the pairs: settings, data sets, numbers wanted."""
    inputs: PairInputs
    config: PairConfig
    settings: Mapping[str, Setting]
    sources: Mapping[str, SourcePlan]
    shards: tuple[str, ...]
    """All shards of all rounds planned so far, by name; none for a plan that was not stored."""
    done: tuple[str, ...]
    num_rounds: int
    finished: bool
    """Whether manifest.json says that nothing is left to do."""

    @property
    def to_do(self) -> tuple[str, ...]:
        """Shards that are not stored yet."""
        stored = set(self.done)
        return tuple(shard for shard in self.shards if shard not in stored)

    @property
    def wanted(self) -> int:
        """Pairs wanted of all sources."""
        return sum(source.wanted for source in self.sources.values())

    @property
    def expected(self) -> int:
        """Pairs that there can be: of each source those wanted, or all candidates where there are fewer."""
        return sum(min(source.wanted, source.candidates) for source in self.sources.values())

    def describe(self) -> list[tuple[str, str]]:
        """The plan as a table of two columns, for a terminal or a page."""
        rows: list[tuple[str, str]] = []
        for name, source in self.sources.items():
            rows.append((f"{name}: pairs wanted", f"{source.wanted:,}"))
            rows.append((f"{name}: candidates", f"{source.candidates:,} of {source.groups:,} {_GROUPS[name]}"))
            if source.candidates < source.wanted:
                rows.append((f"{name}: missing at least", f"{source.wanted - source.candidates:,}"))
            rows += [(f"{name}: left out, {reason}", f"{count:,}") for reason, count in source.not_selected.items()]
            rows += [(f"{name}: refused, {reason}", f"{count:,}") for reason, count in source.refused.items()]
        size = self.config.size_px
        rows += [("pictures", f"{size} x {size} px, {self.config.picture_format}")]
        rows += [("pairs per shard", f"{self.config.pairs_per_shard:,}")]
        if self.shards:
            rows += [("shards", f"{len(self.shards):,}"), ("shards done", f"{len(self.done):,}")]
        return rows


_GROUPS = {"coco": "pictures", "youtube_vis": "objects of videos"}


def plan_pairs(
    inputs: PairInputs,
    config: PairConfig,
    output: OutputFolder,
    locations: Locations | None = None,
    *,
    store: bool = True,
    check: Callable[[], None] = lambda: None,
) -> PairPlan:
    """Reads the annotations, decides which candidates become pairs, and stores the shards' units in the output.

    A plan that the output holds already is used again without reading annotations. `store=False` writes nothing: for a
    look at the numbers. `locations` carries the storage options for data sets on S3. `check` is the lease's.
    Raises ConfigurationError if a data set cannot be read, or if the output was planned with other settings, naming
    the one that changed.
    """
    data_sets = open_data_sets(inputs, locations)
    if not data_sets:
        raise ConfigurationError("no pairs are wanted: raise inputs.num_coco_pairs or inputs.num_youtube_vis_pairs.")
    settings = list_settings(inputs, config, data_sets)
    stored = StoredPlan.load(output)
    if stored is not None:
        stored.check(settings, output)
    elif not store:
        stored = StoredPlan(digest_settings(settings), settings, _count_sources(data_sets, config), ())
    else:
        _check_empty(output)
        stored = _make_plan(data_sets, config, settings, output, check)
    return to_plan(stored, inputs, config, output)


def to_plan(stored: StoredPlan, inputs: PairInputs, config: PairConfig, output: OutputFolder) -> PairPlan:
    """A stored plan beside what the output holds of it."""
    manifest = PairsManifest.load(output)
    if manifest is not None and manifest.identity != stored.identity:
        raise ConfigurationError(
            f"{output.uri(MANIFEST_PATH)} belongs to another plan than {output.uri(PLAN_PATH)}; choose another output."
        )
    shards, sizes = stored.shards, output.list("pairs")
    expected = manifest.sizes if manifest else {}
    done = tuple(
        shard
        for shard in shards
        if (name := f"{shard}.parquet") in sizes and expected.get(shard, sizes[name]) == sizes[name]
    )
    sources = {
        name: SourcePlan(one.candidates, one.wanted, stored.taken[name], one.groups, one.not_selected, one.refused)
        for name, one in stored.sources.items()
    }
    return PairPlan(
        identity=stored.identity,
        inputs=inputs,
        config=config,
        settings=stored.settings,
        sources=sources,
        shards=shards,
        done=done,
        num_rounds=len(stored.rounds),
        finished=manifest is not None and set(expected) == set(done) == set(shards),
    )


def _check_empty(output: OutputFolder) -> None:
    """Raises ConfigurationError if the output holds something else, which a new plan would mix with."""
    record = output.read_run()
    if record is not None and record.flow != "build_pairs":
        raise ConfigurationError(f"{output.root_uri} is the output of {record.flow}; choose another output_uri.")
    if output.list("pairs"):
        raise ConfigurationError(
            f"{output.root_uri} holds pairs, but no {PLAN_PATH} that says what they are; choose another output_uri."
        )


def _make_plan(
    data_sets: list[DataSet],
    config: PairConfig,
    settings: Mapping[str, Setting],
    output: OutputFolder,
    check: Callable[[], None],
) -> StoredPlan:
    identity = digest_settings(settings)
    defects = DefectList(identity)
    with UnitSpool(config.seed) as spool:
        sources: dict[str, StoredSource] = {}
        for data in data_sets:
            logger.info("reading the annotations of %s", data.source)
            sources[data.source] = _read_source(data, config, spool.add, defects.add, check)
        check()
        units = store_units(output, spool.tables(), identity, check)
    remove_other_objects(output, "units", {part["path"].partition("/")[2] for part in units})
    listed = defects.store(output)
    remove_other_objects(output, "refusals", set() if listed is None else {DEFECTS_PATH.partition("/")[2]})
    first = StoredPlan(identity, settings, sources, tuple(units), defects=None if listed is None else listed.to_json())
    plan = plan_round(first, {}, output, check)
    if plan is None:
        raise AssertionError("the first round is always planned")
    remove_other_objects(output, "plan", {"plan.json", *(f"{shard}.parquet" for shard in plan.shards)})
    return plan


def _count_sources(data_sets: list[DataSet], config: PairConfig) -> dict[str, StoredSource]:
    return {data.source: _read_source(data, config, lambda _: None, lambda _: None, lambda: None) for data in data_sets}


def _read_source(
    data: DataSet,
    config: PairConfig,
    add: Callable[[Unit], None],
    on_defect: Callable[[Defect], None],
    check: Callable[[], None],
) -> StoredSource:
    refused: Counter[RefusalReason] = Counter()
    groups = candidates = 0
    for unit in _checked(data.read(config, refused, on_defect), check):
        if unit.num_candidates > 0:
            add(unit)
            groups += 1
            candidates += unit.num_candidates
    chosen, wrong = (
        {str(reason): refused[reason] for reason in sorted(refused) if (reason in SELECTION) is by_choice}
        for by_choice in (True, False)
    )
    return StoredSource(data.wanted, candidates, groups, chosen, wrong)


def _checked(units: Iterator[Unit], check: Callable[[], None], every: int = 1000) -> Iterator[Unit]:
    for number, unit in enumerate(units):
        if number % every == 0:
            check()
        yield unit
