"""Which items a page shows when it cannot show all: a choice that depends on the rows alone, in bounded memory."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest

import pyarrow as pa
import pyarrow.compute as pc

RANKING_SCORES = ("dino", "dino_sub", "clip_i", "clip_t")
"""Scores that order items from the least to the most like their product; the first that a row has counts."""

_SELECTION_COLUMNS = ("item_key", "row_index", "status", "error_code", "scores", "similarities", "preview_panels")


@dataclass(frozen=True)
class PageLimits:
    """How much one page holds, so that a phone can open it."""

    max_pictures: int = 2000
    """Items with a preview strip."""
    max_picture_bytes: int = 24_000_000
    """All strips together, as text in the page (a third more than as files)."""
    max_items: int = 10_000
    """Items with an image, those without a preview strip included."""
    max_failures_per_code: int = 1000
    """Failed items listed one by one; all are counted."""


@dataclass(frozen=True)
class Choice:
    """The items of a page."""

    pictured: Mapping[str, int]
    """item_key -> priority of its preview strip, 0 first."""
    listed: frozenset[str]
    """Every item_key on the page, pictured and failed ones included."""


class Smallest:
    """The `size` first rows of a stream in the order of `sort_keys`, the item_key deciding between equals."""

    def __init__(self, size: int, *sort_keys: tuple[str, str]) -> None:
        self._size = size
        self._sort_keys = [*sort_keys, ("item_key", "ascending")]
        self._rows: pa.Table | None = None

    def add(self, rows: pa.Table) -> None:
        """Take rows into account; they have the columns of the sort keys."""
        best = pc.take(rows, pc.select_k_unstable(rows, min(self._size, rows.num_rows), self._sort_keys))
        if self._rows is not None:
            best = pa.concat_tables([self._rows, best])
        self._rows = pc.take(best, pc.select_k_unstable(best, min(self._size, best.num_rows), self._sort_keys))

    def keys(self) -> list[str]:
        """Their item_keys, in order."""
        return [] if self._rows is None else list(self._rows.column("item_key").to_pylist())


class Selection:
    """Sees every resolved row once and chooses the page's items.

    All failures up to a number per code, in the catalog's order. Of the images: a random sample (item_keys are digests,
    so the smallest are one) and the lowest and the highest by score, in turns.
    """

    def __init__(self, limits: PageLimits) -> None:
        self._limits = limits
        num_extreme = limits.max_pictures // 4
        self._done = Smallest(limits.max_items)
        self._pictured = Smallest(limits.max_pictures)
        self._lowest = Smallest(num_extreme, ("rank", "ascending"))
        self._highest = Smallest(num_extreme, ("rank", "descending"))
        self._failed: dict[str, Smallest] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Take resolved rows into account; columns as in the results schema."""
        status = batch.column("status")
        self._add_failed(batch.filter(pc.equal(status, "failed")))
        done = batch.filter(pc.equal(status, "done"))
        keys = pa.table({"item_key": done.column("item_key"), "rank": rank_values(done)})
        self._done.add(keys)
        pictured = keys.filter(pc.fill_null(pc.greater(done.column("preview_panels"), 0), fill_value=False))
        self._pictured.add(pictured)
        ranked = pictured.filter(pc.is_finite(pictured.column("rank")))
        self._lowest.add(ranked)
        self._highest.add(ranked)

    def _add_failed(self, failed: pa.RecordBatch) -> None:
        rows = pa.table({name: failed.column(name) for name in ("item_key", "row_index", "error_code")})
        for code in pc.unique(rows.column("error_code")).to_pylist():
            of_code = rows.filter(pc.equal(rows.column("error_code"), code)) if code else rows
            smallest = Smallest(self._limits.max_failures_per_code, ("row_index", "ascending"))
            self._failed.setdefault(code or "", smallest).add(of_code)

    def choose(self) -> Choice:
        """The choice among all rows seen."""
        in_turns = zip_longest(*(iter(keys) for keys in self._picture_sources()))
        order = dict.fromkeys(key for key in chain.from_iterable(in_turns) if key is not None)
        pictured = {key: priority for priority, key in enumerate(islice(order, self._limits.max_pictures))}
        images = islice(dict.fromkeys(chain(pictured, self._done.keys())), self._limits.max_items)
        failed = chain.from_iterable(smallest.keys() for smallest in self._failed.values())
        return Choice(pictured, frozenset(chain(images, failed)))

    def _picture_sources(self) -> Iterator[Sequence[str]]:
        sample = self._pictured.keys()
        yield sample[0::2]
        yield self._lowest.keys()
        yield sample[1::2]
        yield self._highest.keys()


@dataclass
class PictureBudget:
    """Keeps the strips of highest priority that fit into `max_bytes` together, in whatever order they arrive."""

    max_bytes: int
    _kept: dict[str, str] = field(default_factory=dict)
    _heap: list[tuple[int, str]] = field(default_factory=list)
    _num_bytes: int = 0
    _first_dropped: int | None = None

    def offer(self, priority: int, item_key: str, text: str) -> None:
        """Keep a strip unless those before it fill the budget. Lower numbers come first."""
        heapq.heappush(self._heap, (-priority, item_key))
        self._kept[item_key] = text
        self._num_bytes += len(text)
        while self._heap and (self._num_bytes > self.max_bytes or self._last_is_beyond()):
            self._drop_last()

    def _last_is_beyond(self) -> bool:
        # A small strip must not slip in behind a larger one that did not fit: the choice would depend on the order.
        return self._first_dropped is not None and -self._heap[0][0] > self._first_dropped

    def _drop_last(self) -> None:
        priority, item_key = heapq.heappop(self._heap)
        self._first_dropped = -priority if self._first_dropped is None else min(self._first_dropped, -priority)
        self._num_bytes -= len(self._kept.pop(item_key))

    def kept(self) -> Mapping[str, str]:
        """item_key -> strip: the longest beginning, by priority, that fits."""
        return self._kept


def rank_values(batch: pa.RecordBatch) -> pa.Array:
    """One number per row that orders items by likeness to their product; null where a row has none."""
    scores = batch.column("scores")
    candidates = [pc.map_lookup(scores, query_key=name, occurrence="first") for name in RANKING_SCORES]
    return pc.coalesce(*candidates, last_similarity(batch))


def last_similarity(batch: pa.RecordBatch) -> pa.Array:
    """The similarity of the last two images of every row; null where a row made no loop."""
    similarities = batch.column("similarities")
    ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(similarities), 0))
    has_any = pc.fill_null(pc.greater(pc.list_value_length(similarities), 0), fill_value=False)
    positions = pc.if_else(has_any, pc.subtract(ends, 1), None)
    return pc.cast(pc.take(pc.list_flatten(similarities), positions), pa.float64())


def selection_columns() -> list[str]:
    """The columns that `Selection.add` reads."""
    return list(_SELECTION_COLUMNS)
