"""A set of pairs, and one pair of it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ezigen.config import ConfigurationError
from ezigen.images import decode_picture
from ezigen.pairs import Box, cut_target
from tasks.inspection.near import find_id
from tasks.inspection.run_facts import run_facts
from tasks.inspection.sheet import Cell, draw_sheet, to_jpeg, to_png, with_box
from tasks.inspection.view import SavedPicture, View, counts_table, schema_table
from tasks.reports.wording import plural
from tasks.storage import Locations, OutputFolder, locate
from tasks.storage.filesystems import describe_error

SHEET_PAIRS = 12
SHEET_PX, PAIR_PX = 128, 320
_COUNTED = ["source", "subject_class", "size_px", "subject_format"]
_PICTURES = ("subject", "subject_mask", "target")
_ROWS_PER_BATCH = 16

Row = dict[str, Any]


def inspect_pairs(output: OutputFolder) -> View:
    """Counts by source and class, refusals by reason, the schema, and pairs from all over the set."""
    shards = output.list("pairs")
    sources, classes, sizes = Counter[str](), Counter[str](), Counter[str]()
    for name in shards:
        table = _read(output, f"pairs/{name}", _COUNTED)
        sources.update(table.column("source").to_pylist())
        classes.update(table.column("subject_class").to_pylist())
        sizes.update(f"{s} px {f}" for s, f in zip(*_columns(table, "size_px", "subject_format"), strict=True))
    refusals = Counter[str]()
    for name in output.list("refusals"):
        refusals.update(_read(output, f"refusals/{name}", ["reason"]).column("reason").to_pylist())
    facts = [
        ("kind", "set of pairs"),
        ("location", output.root_uri),
        ("state", _state(output, len(shards))),
        ("pairs", f"{sources.total():,}"),
        ("shards", f"{len(shards):,}, {sum(shards.values()):,} bytes"),
        ("pictures", ", ".join(sizes) or "none"),
        *_identity(output),
        *run_facts(output.read_run()),
    ]
    tables = [counts_table("by source", "source", sources), counts_table("by class", "class", classes)]
    if refusals:
        tables.append(counts_table("refused", "reason", refusals))
    if shards:
        tables.append(schema_table("columns of pairs", _schema(output, f"pairs/{next(iter(shards))}")))
    sheet = draw_pairs(output)
    pictures = () if sheet is None else (SavedPicture("contact-sheet.jpg", to_jpeg(sheet)),)
    return View(f"pairs at {output.root_uri}", tuple(facts), tuple(tables), pictures)


def inspect_pair(output: OutputFolder, wanted: str) -> View:
    """One pair: its columns, and subject, mask and target with the subject's box. A refused one: why."""
    ids = chain(_ids(output, "pairs"), _ids(output, "refusals"))
    pair_id = find_id(wanted, ids, "pair", output.root_uri)
    row = find_pair(output, pair_id)
    if row is None:
        return _refused(output, pair_id)
    facts = [(name, _shown(row[name])) for name in row if name not in _PICTURES]
    sheet = draw_sheet([_cell(row, output.locations, PAIR_PX)], picture_px=PAIR_PX, num_columns=1)
    picture = SavedPicture(f"{pair_id.replace('/', '-')}.png", to_png(sheet))
    return View(f"pair {pair_id}", tuple(facts), pictures=(picture,))


def find_pair(output: OutputFolder, pair_id: str, shards: Sequence[str] | None = None) -> Row | None:
    """A pair's row, looked for in some shards (file names) or in all of them."""
    for name in output.list("pairs") if shards is None else shards:
        ids = _read(output, f"pairs/{name}", ["pair_id"]).column("pair_id").to_pylist()
        if pair_id in ids:
            return next(read_rows(output, name, [ids.index(pair_id)]))
    return None


def draw_pairs(output: OutputFolder, num_pairs: int = SHEET_PAIRS) -> Image.Image | None:
    """A contact sheet of pairs that are spread evenly over the set; None for an empty one."""
    rows = {name: _num_rows(output, f"pairs/{name}") for name in output.list("pairs")}
    cells = [
        _cell(row, output.locations, SHEET_PX)
        for name, places in _spread(rows, num_pairs).items()
        for row in read_rows(output, name, places)
    ]
    return draw_sheet(cells, picture_px=SHEET_PX, num_columns=2) if cells else None


def read_rows(output: OutputFolder, shard: str, places: Sequence[int]) -> Iterator[Row]:
    """Some rows of a shard (its file name) by their numbers, in ascending order."""
    wanted = sorted(places)
    with output.filesystem.open(output.path(f"pairs/{shard}"), "rb") as source, pq.ParquetFile(source) as file:
        start = 0
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH, use_threads=False):
            while wanted and wanted[0] < start + len(batch):
                yield batch.slice(wanted.pop(0) - start, 1).to_pylist()[0]
            if not wanted:
                return
            start += len(batch)


def subject_picture(row: Row) -> Image.Image:
    """The subject of a pair."""
    return decode_picture(row["subject"], min_side_px=1).rgb


def _spread(rows: dict[str, int], num_pairs: int) -> dict[str, list[int]]:
    """Row numbers by shard: `num_pairs` of them at equal distances over the whole set."""
    total = sum(rows.values())
    chosen = sorted({(2 * k + 1) * total // (2 * num_pairs) for k in range(num_pairs)}) if total else []
    places: dict[str, list[int]] = {}
    start = 0
    for name, count in rows.items():
        inside = [index - start for index in chosen if start <= index < start + count]
        if inside:
            places[name] = inside
        start += count
    return places


def _cell(row: Row, locations: Locations, picture_px: int) -> Cell:
    subject = subject_picture(row)
    mask = decode_picture(row["subject_mask"], min_side_px=1).rgb
    target, trouble = _target(row, locations)
    lines = [row["pair_id"], f"{row['subject_class']}: {row['caption']}"]
    if target is None:
        shown = Image.new("RGB", (picture_px, picture_px), (235, 235, 235))
        lines.append(trouble)
    else:
        shown = with_box(target, row["target_box"], picture_px)
    return Cell((subject, mask, shown), tuple(lines))


def _target(row: Row, locations: Locations) -> tuple[Image.Image | None, str]:
    """The target picture, or why it cannot be shown: those stored by reference lie in the data set."""
    if row["target"] is not None:
        return decode_picture(row["target"], min_side_px=1).rgb, ""
    place = locate(row["target_uri"])
    try:
        data = bytes(locations.filesystem(place).cat_file(place.path))
        picture = decode_picture(data, min_side_px=1).rgb
    except Exception as error:  # noqa: BLE001 - the data set may be anywhere, or gone; the pair can be shown without
        return None, f"target {row['target_uri']} cannot be read: {describe_error(error)}"
    if hashlib.sha256(data).hexdigest() != row["target_source_sha256"]:
        return None, f"target {row['target_uri']} is another picture now"
    return cut_target(picture, Box(*row["target_crop"]), row["size_px"]), ""


def _refused(output: OutputFolder, pair_id: str) -> View:
    for name in output.list("refusals"):
        for row in _read(output, f"refusals/{name}").to_pylist():
            if row["pair_id"] == pair_id:
                facts = tuple((column, _shown(value)) for column, value in row.items())
                return View(f"refused candidate {pair_id}", facts)
    raise ConfigurationError(f"{output.root_uri}: {pair_id} has vanished while it was read; try again.")


def _state(output: OutputFolder, num_shards: int) -> str:
    if "manifest.json" in output.list(""):
        manifest = json.loads(output.read("manifest.json"))
        return f"finished: {plural(manifest['rows'], 'pair')} in {plural(len(manifest['shards']), 'shard')}"
    planned = [name for name in output.list("plan") if name.endswith(".parquet")]
    return f"unfinished: {num_shards:,} of {plural(len(planned), 'planned shard')}; `ezigen pairs` goes on"


def _identity(output: OutputFolder) -> list[tuple[str, str]]:
    try:
        return [("identity", str(json.loads(output.read("plan/plan.json"))["identity"]))]
    except (FileNotFoundError, KeyError, ValueError):
        return []


def _ids(output: OutputFolder, folder: str) -> Iterator[str]:
    for name in output.list(folder):
        yield from _read(output, f"{folder}/{name}", ["pair_id"]).column("pair_id").to_pylist()


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table.column(name).to_pylist() for name in names]


def _num_rows(output: OutputFolder, path: str) -> int:
    with output.filesystem.open(output.path(path), "rb") as source:
        return int(pq.read_metadata(source).num_rows)


def _schema(output: OutputFolder, path: str) -> pa.Schema:
    with output.filesystem.open(output.path(path), "rb") as source:
        return pq.read_schema(source)


def _read(output: OutputFolder, path: str, columns: list[str] | None = None) -> pa.Table:
    """Some columns of one object. Raises ConfigurationError, naming it, if it is damaged."""
    try:
        with output.filesystem.open(output.path(path), "rb") as source:
            return pq.read_table(source, columns=columns, use_threads=False)
    except (pa.ArrowException, ValueError) as error:
        raise ConfigurationError(
            f"{output.uri(path)} is damaged ({describe_error(error)}); delete it and run `ezigen pairs` again."
        ) from error


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{part:g}" for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
