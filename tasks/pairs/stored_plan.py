"""plan/plan.json and the shards that it lists: storing a plan, reading it, and adding a round to it."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ezigen.config import ConfigurationError
from tasks.datasets.units import SOURCES, UNIT_SCHEMA
from tasks.pairs.layout import (
    IDENTITY,
    KIND,
    PLAN_PATH,
    plan_path,
    read_json,
    shard_name,
    take_kind,
    to_parquet,
    write_json,
)
from tasks.pairs.rounds import SourceState, count_next, count_per_shard, divide_missing
from tasks.pairs.sampling import Pieces, divide, take_balanced
from tasks.pairs.sources import Setting
from tasks.pairs.units import UnitNumbers, count_units, read_units
from tasks.storage.filesystems import with_retries
from tasks.storage.folder import OutputFolder

PLAN_SCHEMA = pa.schema([
    *UNIT_SCHEMA,
    pa.field("rank_start", pa.int64(), nullable=False),
    pa.field("rank_stop", pa.int64(), nullable=False),
])  # fmt: skip
"""A unit, and which of its candidates the shard builds: [rank_start, rank_stop)."""

LIMITS = "ezigen.limits"
"""Metadata of a planned shard: how many pairs of each source it may build, as JSON."""

_KIND, _VERSION = "pairs-plan", 1


@dataclass(frozen=True)
class Round:
    """One round: `taken` candidates by source in this and all earlier rounds, in `num_shards` new shards."""

    taken: Mapping[str, int]
    num_shards: int


@dataclass(frozen=True)
class StoredSource:
    """One source, as plan.json holds it."""

    wanted: int
    candidates: int
    groups: int
    not_selected: Mapping[str, int] = field(default_factory=dict)
    """What the selection left out, by reason."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """What is wrong with the annotations, by reason."""


@dataclass(frozen=True)
class StoredPlan:
    """The content of plan.json."""

    identity: str
    settings: Mapping[str, Setting]
    sources: Mapping[str, StoredSource]
    units: tuple[Mapping[str, Any], ...]
    rounds: tuple[Round, ...] = ()
    defects: Mapping[str, Any] | None = None
    """The StoredFile of refusals/annotations.parquet, if there is one."""

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards of all rounds, in order."""
        return tuple(shard_name(number, i) for number, one in enumerate(self.rounds) for i in range(one.num_shards))

    @property
    def taken(self) -> Mapping[str, int]:
        """Candidates in all rounds so far, by source."""
        return self.rounds[-1].taken if self.rounds else dict.fromkeys(self.sources, 0)

    def store(self, output: OutputFolder) -> None:
        """Writes plan.json; the objects that it lists have been stored before."""
        write_json(output, PLAN_PATH, {"kind": _KIND, "version": _VERSION, **asdict(self)})

    @classmethod
    def load(cls, output: OutputFolder) -> Self | None:
        """The plan that the output holds, if any. Raises ConfigurationError if it cannot be understood."""
        values = read_json(output, PLAN_PATH)
        if values is None:
            return None
        try:
            values = take_kind(values, _KIND, _VERSION)
            sources = {name: StoredSource(**one) for name, one in values.pop("sources").items()}
            rounds = tuple(Round(**one) for one in values.pop("rounds"))
            return cls(**{**values, "units": tuple(values["units"])}, sources=sources, rounds=rounds)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{output.uri(PLAN_PATH)} is no plan of pairs ({error}); choose another output."
            ) from error

    def check(self, settings: Mapping[str, Setting], output: OutputFolder) -> None:
        """Raises ConfigurationError, naming the first setting that is another one now."""
        for name in sorted({*self.settings, *settings}):
            before, now = self.settings.get(name), settings.get(name)
            if before != now:
                raise ConfigurationError(
                    f"{output.root_uri} was planned with {name} {_say(before)}, and now it is {_say(now)}; "
                    "choose another output_uri, or set it back."
                )


def plan_round(
    stored: StoredPlan, built: Mapping[str, int], output: OutputFolder, check: Callable[[], None]
) -> StoredPlan | None:
    """The plan with one more round, which is stored, for what is missing of `built`; None if there is nothing to add.

    The next candidates in the order of sampling are taken, as many as `tasks.pairs.rounds` says. So the rounds, like
    their shards, depend on the data alone.
    """
    taking = next_candidates(stored, built)
    if taking is None:
        return None
    before, sources = stored.taken, _states(stored, built)
    taken = {name: before[name] + number for name, number in taking.items()}
    tables = read_units(output, stored.units, stored.identity, ["source", "num_candidates"])
    numbers = count_units(tables)
    per_shard = count_per_shard(taking, sources, _pairs_per_shard(stored))
    pieces = divide(take_ranks(numbers, before), take_ranks(numbers, taken), per_shard)
    limits = _limits(pieces, numbers, {name: one.missing for name, one in sources.items()})
    number = len(stored.rounds)
    for index, table in enumerate(_shard_tables(stored, pieces, output)):
        check()
        metadata = {KIND: "pairs-plan", IDENTITY: stored.identity, LIMITS: json.dumps(limits[index])}
        output.write(plan_path(shard_name(number, index)), to_parquet([table], PLAN_SCHEMA, metadata))
    longer = replace(stored, rounds=(*stored.rounds, Round(taken, pieces.num_shards)))
    check()
    longer.store(output)
    return longer


def next_candidates(stored: StoredPlan, built: Mapping[str, int]) -> dict[str, int] | None:
    """How many more candidates of each source one more round would take; None if there is nothing to add.

    Nothing is: as many pairs as are wanted are built, or no candidate is left.
    """
    taking = count_next(_states(stored, built), _pairs_per_shard(stored))
    return taking if any(taking.values()) or not stored.rounds else None


def _states(stored: StoredPlan, built: Mapping[str, int]) -> dict[str, SourceState]:
    return {
        name: SourceState(source.wanted, source.candidates, stored.taken[name], built.get(name, 0))
        for name, source in stored.sources.items()
    }


def _pairs_per_shard(stored: StoredPlan) -> int:
    return int(stored.settings["pairs.pairs_per_shard"])


def _limits(pieces: Pieces, numbers: UnitNumbers, missing: Mapping[str, int]) -> list[dict[str, int]]:
    """By shard, how many pairs of each source it may build."""
    limits: list[dict[str, int]] = [{} for _ in range(pieces.num_shards)]
    for source, number in missing.items():
        of_source = numbers.source[pieces.group] == SOURCES.index(source)
        sizes = np.where(of_source, pieces.stop - pieces.start, 0)
        in_shards = np.bincount(pieces.shard, weights=sizes, minlength=pieces.num_shards).astype(np.int64)
        for shard, limit in enumerate(divide_missing(number, in_shards).tolist()):
            limits[shard][source] = limit
    return limits


def take_ranks(numbers: UnitNumbers, taken: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """How many candidates every unit gives when each source gives so many."""
    ranks = np.zeros(len(numbers.num_candidates), np.int64)
    for source, number in taken.items():
        at = numbers.of_source(source)
        ranks[at] = take_balanced(numbers.num_candidates[at], number)
    return ranks


def remove_other_objects(output: OutputFolder, folder: str, keep: set[str]) -> None:
    """Deletes the objects of a folder that are not among `keep`, as a plan that was never finished leaves them."""
    filesystem = output.filesystem
    for name in output.list(folder):
        if name not in keep:
            path = output.path(f"{folder}/{name}")
            with contextlib.suppress(FileNotFoundError):
                with_retries(lambda path=path: filesystem.rm_file(path), f"deleting {path}")  # type: ignore[misc]


def _shard_tables(stored: StoredPlan, pieces: Pieces, output: OutputFolder) -> Iterator[pa.Table]:
    """The rows of each shard in turn, while the units are read once from the first to the last."""
    shard, waiting = 0, list[pa.Table]()
    for piece_shard, table in _piece_tables(stored, pieces, output):
        starts = np.flatnonzero(np.diff(piece_shard, prepend=shard - 1))
        for start, stop in zip(starts, [*starts[1:], len(table)], strict=True):
            if piece_shard[start] != shard:
                yield pa.concat_tables(waiting).combine_chunks()
                shard, waiting = int(piece_shard[start]), []
            waiting.append(table.slice(start, stop - start))
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _piece_tables(
    stored: StoredPlan, pieces: Pieces, output: OutputFolder
) -> Iterator[tuple[npt.NDArray[np.int64], pa.Table]]:
    """The pieces of each part of the units, as rows of PLAN_SCHEMA beside their shards."""
    first = 0
    for stored_part in stored.units:
        start, stop = np.searchsorted(pieces.group, [first, first + stored_part["rows"]])
        part = slice(int(start), int(stop))
        # A last small round needs few of the parts.
        for table in read_units(output, [stored_part] if start < stop else [], stored.identity):
            rows = table.select(UNIT_SCHEMA.names).take(pa.array(pieces.group[part] - first))
            rows = rows.append_column("rank_start", pa.array(pieces.start[part]))
            yield pieces.shard[part], rows.append_column("rank_stop", pa.array(pieces.stop[part]))
        first += stored_part["rows"]


def _say(value: Setting | None) -> str:
    return "absent" if value is None else str(value)
