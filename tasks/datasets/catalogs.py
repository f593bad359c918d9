"""Catalogs of products: CSV, JSON Lines and Parquet, read as one stream of text columns.

Every format gives the same columns, all of them text: a missing value is null, a number is written in decimal, several
subject locations are one JSON array. What a line cannot say is put into the column `broken` instead of ending the run.
"""

import csv
import difflib
import io
import itertools
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self, TextIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ezigen.config import ConfigurationError
from tasks.catalog.rows import COLUMNS, REQUIRED_COLUMNS, join_uris
from tasks.storage.filesystems import classify, describe_error, with_retries
from tasks.storage.locations import Location, Locations, locate

logger = logging.getLogger(__name__)

BROKEN = "broken"
"""Why the line could not be read at all; null for every readable one."""

CATALOG_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in (*COLUMNS, BROKEN)])

# Larger batches cost more: Python's garbage collector looks at every row of a batch again and again.
BATCH_ROWS = 10_000
MAX_CELL_CHARS = 131_072
MAX_LINE_BYTES = 2**20
MAX_SHARED_BYTES = 64 * 1024
"""Of a cell that Parquet stores once for many rows: a small file must not become gigabytes. No good one is longer."""
_PARQUET_BATCH_ROWS = 2_000  # so many cells of MAX_SHARED_BYTES still fit into memory
_MAX_NAMES_SHOWN = 20
_MAX_NAMES_KEPT = 1000
_MAX_NAME_CHARS = 200

Texts = list[str | None]


@dataclass(frozen=True)
class Catalog:
    """A catalog file that can be read more than once. Small and picklable."""

    location: Location
    locations: Locations = field(default_factory=Locations)

    @classmethod
    def at(cls, uri: str, locations: Locations | None = None) -> "Catalog":
        """The catalog at the operator's location. Raises ConfigurationError for a suffix that is not read."""
        location = locate(uri)
        if location.suffix not in _READERS:
            raise ConfigurationError(
                f"catalog_uri {location.uri}: the suffix tells the format; it must be one of {', '.join(_READERS)}."
            )
        return cls(location, locations or Locations())

    def signature(self) -> str:
        """Changes when the file does: size and version tag or time. Raises ConfigurationError if it is absent."""
        info = _guarded(self.location, self._info)
        marks = [info.get(name) for name in ("size", "ETag", "ino", "mtime", "LastModified", "created")]
        return repr([str(mark) for mark in marks if mark is not None])

    def batches(self, on_unknown: Callable[[list[str]], None] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in order, in CATALOG_SCHEMA. `on_unknown` gets the names of columns that mean nothing here.

        Raises ConfigurationError if the file is absent or unreadable, has no rows, or lacks a required column.
        """
        num_rows = 0
        reader = _READERS[self.location.suffix](on_unknown or _ignore)
        with self._open() as file:
            for batch in _guarded_iterator(self.location, reader.read(file)):
                num_rows += batch.num_rows
                yield batch
        if num_rows == 0:
            raise ConfigurationError(f"catalog_uri {self.location.uri}: the catalog has no rows.")

    def _info(self) -> dict[str, Any]:
        filesystem = self.locations.filesystem(self.location)
        info = with_retries(lambda: filesystem.info(self.location.path), f"looking at {self.location.uri}")
        if info["type"] != "file":
            raise ConfigurationError(f"catalog_uri {self.location.uri} is a {info['type']}, not a file.")
        return dict(info)

    def _open(self) -> BinaryIO:
        filesystem = self.locations.filesystem(self.location)
        return cast("BinaryIO", _guarded(self.location, lambda: filesystem.open(self.location.path, "rb")))


def read_catalog(uri: str, locations: Locations | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a catalog in CATALOG_SCHEMA, with a warning about columns that mean nothing here."""
    return Catalog.at(uri, locations).batches(on_unknown=warn_unknown)


def warn_unknown(names: list[str]) -> None:
    """Logs one warning that lists ignored columns and suggests what a misspelt one may mean."""
    shown = [f"{name!r}{_suggestion(name, COLUMNS)}" for name in names[:_MAX_NAMES_SHOWN]]
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    logger.warning("the catalog has columns that are ignored: %s%s", ", ".join(shown), more)


class _CsvReader:
    """Comma-separated UTF-8 with a header; cells may be quoted and then hold line breaks."""

    def __init__(self, on_unknown: Callable[[list[str]], None]) -> None:
        self._on_unknown = on_unknown

    def read(self, file: BinaryIO) -> Iterator[pa.RecordBatch]:
        _refuse_utf16(file)
        # Bytes that are not UTF-8 become lone surrogates, which Arrow refuses, so that only their row is lost.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        lines = _BoundedLines(text)
        reader = csv.reader(lines, strict=True)
        header = self._header(reader)
        while (chunk := _CsvChunk.read(reader, lines, len(header))).rows:
            yield _csv_batch(header, chunk)

    def _header(self, reader: Any) -> list[str]:
        try:
            header: list[str] = next((row for row in reader if any(row)), [])
        except csv.Error as error:
            raise ConfigurationError(f"the header (line {reader.line_num}) is not valid CSV: {error}") from error
        names = [name.strip() for name in header]
        if not names:
            raise ConfigurationError("the catalog is empty; it needs a header line and rows.")
        _check_columns(names)
        _report_unknown(names, self._on_unknown)
        return names


class _BoundedLines:
    """The lines of a file, as long as they and the rows that they belong to end somewhere."""

    def __init__(self, text: TextIO) -> None:
        self._readline = text.readline
        self._num_lines = 0
        self.row_chars = 0
        """Of the row that is being read; whoever reads the rows sets it back."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        self._num_lines += 1
        self.row_chars += len(line)
        if self.row_chars >= MAX_LINE_BYTES:
            raise ConfigurationError(
                f"the row that ends on or after line {self._num_lines} has more than {MAX_LINE_BYTES:,} characters; "
                "end its line, or close the quote in it."
            )
        return line


@dataclass
class _CsvChunk:
    """Some rows of equal length, and why some of them are broken (by position)."""

    num_cells: int
    rows: list[list[str]] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, reader: Any, lines: _BoundedLines, num_cells: int) -> "_CsvChunk":
        """Up to BATCH_ROWS rows; none at the end of the file. Blank ones are left out."""
        chunk = cls(num_cells)
        rows, line = chunk.rows, reader.line_num
        while len(rows) < BATCH_ROWS:
            # Ten million rows pass here: a good one costs no more than it must.
            lines.row_chars = 0
            try:
                row = next(reader, None)
            except csv.Error as error:
                chunk.add_broken(_csv_trouble(error, line + 1))
                row = ()
            if row is None:
                break
            if len(row) == num_cells and row[0]:
                rows.append(row)
            elif any(row):
                chunk.add_odd(row, line + 1)
            line = reader.line_num
        return chunk

    def add_odd(self, row: list[str], line: int) -> None:
        """A row that has no first cell or not as many cells as the header."""
        if len(row) == self.num_cells:
            self.rows.append(row)
        else:
            self.add_broken(f"line {line} has {len(row)} cells, the header has {self.num_cells}")

    def add_broken(self, reason: str) -> None:
        """A row that cannot be read."""
        self.broken[len(self.rows)] = reason
        self.rows.append([""] * self.num_cells)


def _csv_trouble(error: csv.Error, line: int) -> str:
    """The reason for one broken row. Raises ConfigurationError where the quoting of the whole rest is in doubt."""
    message = str(error)
    if "field limit" in message or "end of data" in message:
        raise ConfigurationError(
            f"the quote opened on line {line} is never closed, or its cell exceeds {MAX_CELL_CHARS:,} characters; "
            "close it, or write a quote inside a cell twice."
        ) from error
    return f"line {line} is not valid CSV: {message}"


def _csv_batch(header: Sequence[str], chunk: _CsvChunk) -> pa.RecordBatch:
    columns = dict(zip(header, zip(*chunk.rows, strict=True), strict=True))
    try:
        arrays = {name: pa.array(columns[name], pa.string()) for name in COLUMNS if name in columns}
    except UnicodeEncodeError:
        return _csv_batch(header, _without_bad_text(chunk))
    if chunk.broken:
        arrays[BROKEN] = pa.array([chunk.broken.get(n) for n in range(len(chunk.rows))], pa.string())
    return _to_schema(arrays, len(chunk.rows), empty_is_null=True)


def _without_bad_text(chunk: _CsvChunk) -> _CsvChunk:
    cleaned = _CsvChunk(chunk.num_cells)
    for position, row in enumerate(chunk.rows):
        if position in chunk.broken:
            cleaned.add_broken(chunk.broken[position])
        elif all(_is_unicode(cell) for cell in row):
            cleaned.rows.append(row)
        else:
            cleaned.add_broken("the row is not UTF-8; save the catalog as UTF-8")
    return cleaned


class _JsonReader:
    """JSON Lines in UTF-8: one object per line. Columns are found by looking at the rows."""

    def __init__(self, on_unknown: Callable[[list[str]], None]) -> None:
        self._on_unknown = on_unknown
        self._names: dict[str, None] = {}

    def read(self, file: BinaryIO) -> Iterator[pa.RecordBatch]:
        _refuse_utf16(file)
        rows = self._rows(file)
        first = True
        while chunk := list(itertools.islice(rows, BATCH_ROWS)):
            if first and self._names:
                _check_columns(list(self._names))
            first = False
            columns = zip((*COLUMNS, BROKEN), zip(*chunk, strict=True), strict=True)
            yield _to_schema({name: pa.array(values, pa.string()) for name, values in columns}, len(chunk))
        _report_unknown(list(self._names), self._on_unknown)

    def _rows(self, file: BinaryIO) -> Iterator[Texts]:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                _skip_line(file)
                yield _broken(f"line {number} has more than {MAX_LINE_BYTES:,} bytes")
            elif stripped := line.strip().removeprefix(b"\xef\xbb\xbf"):
                yield self._row(stripped, number)

    def _row(self, line: bytes, number: int) -> Texts:
        try:
            values = json.loads(line.decode())
        except UnicodeDecodeError:
            return _broken(f"line {number} is not UTF-8; save the catalog as UTF-8")
        except (ValueError, RecursionError) as error:
            return _broken(f"line {number} is not JSON: {error}")
        if not isinstance(values, dict):
            return _broken(f"line {number} is not a JSON object")
        if len(self._names) < _MAX_NAMES_KEPT:
            self._names.update(dict.fromkeys(name[:_MAX_NAME_CHARS] for name in values))
        try:
            return [*[_json_text(name, values.get(name)) for name in COLUMNS], None]
        except ValueError as error:
            return _broken(f"line {number}: {error}")


def _json_text(name: str, value: object) -> str | None:
    if isinstance(value, list) and name == "subject_uri" and all(isinstance(uri, str) for uri in value):
        return _unicode(name, join_uris(value))
    if isinstance(value, list) and name == "subject_mix":
        return _unicode(name, json.dumps(value))
    if value is None or isinstance(value, str):
        return _unicode(name, value)
    if isinstance(value, int | float) and not isinstance(value, bool) and (name == "seed" or isinstance(value, int)):
        return str(value)
    raise ValueError(f"{name} is a JSON {type(value).__name__}, not a text")


def _unicode(name: str, value: str | None) -> str | None:
    if value is not None and not _is_unicode(value):
        raise ValueError(f"{name} contains half of a surrogate pair")
    return value


class _ParquetReader:
    """Parquet with text columns; numbers are accepted where their decimal form is meant."""

    def __init__(self, on_unknown: Callable[[list[str]], None]) -> None:
        self._on_unknown = on_unknown

    def read(self, file: BinaryIO) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(file, pre_buffer=False, read_dictionary=_long_shared(file)) as parquet:
            names = parquet.schema_arrow.names
            _check_columns(names)
            _report_unknown(names, self._on_unknown)
            known = [name for name in COLUMNS if name in names]
            for batch in parquet.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=known, use_threads=False):
                yield _parquet_batch(batch)


def _long_shared(file: BinaryIO) -> list[str]:
    """The text columns with cells above MAX_SHARED_BYTES that many rows may share. They are read shared, which takes
    ten times as long.
    """
    texts = [field.name for field in pq.read_schema(file) if field.name in COLUMNS and _is_text(field.type)]
    found: set[str] = set()
    with pq.ParquetFile(file, pre_buffer=False, read_dictionary=texts) as parquet:
        for row_group in range(parquet.num_row_groups):
            # The first row brings the whole dictionary along.
            rows = parquet.iter_batches(batch_size=1, row_groups=[row_group], columns=texts, use_threads=False)
            for first in itertools.islice(rows, 1):
                found.update(name for name in texts if _has_long_shared(first.column(name)))
    return sorted(found)


def _has_long_shared(column: pa.Array) -> bool:
    longest = pc.max(pc.binary_length(column.dictionary)).as_py() if pa.types.is_dictionary(column.type) else None
    return longest is not None and longest > MAX_SHARED_BYTES


def _parquet_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    broken = pa.nulls(batch.num_rows, pa.string())
    arrays: dict[str, pa.Array] = {}
    for name in batch.schema.names:
        text, reasons = _arrow_text(name, batch.column(name))
        arrays[name], more_reasons = _utf8_text(text)
        for given in (reasons, more_reasons):
            if given is not None:
                broken = pc.coalesce(broken, given)
    return _to_schema({**arrays, BROKEN: broken}, batch.num_rows)


def _arrow_text(name: str, array: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """A column as text, and why its wrong values are wrong (null for the others), if there are any."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _shared_text(name, array)
    if pa.types.is_null(kind) or pa.types.is_integer(kind) or _is_text(kind):
        return array.cast(pa.string()), None
    if pa.types.is_floating(kind):
        return _float_text(name, array)
    if name == "subject_uri" and _is_list(kind) and _is_text(kind.value_type):
        return _joined_lists(array), None
    if name == "subject_mix" and _is_list(kind) and pa.types.is_floating(kind.value_type):
        return pa.array([None if mix is None else json.dumps(mix) for mix in array.to_pylist()], pa.string()), None
    raise ConfigurationError(f"column {name} has the type {kind}; it must be text.")


def _utf8_text(array: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """The column without the cells that are not UTF-8, which Parquet's reader does not look at, and why."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        cells = [None if cell is None else _decode(cell) for cell in array.cast(pa.binary()).to_pylist()]
        text = pa.array(cells, pa.string())
        reason = pa.scalar("the row is not UTF-8; write the catalog as UTF-8")
        return text, pc.if_else(pc.and_(array.is_valid(), text.is_null()), reason, pa.scalar(None, pa.string()))
    return array, None


def _decode(cell: bytes) -> str | None:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return None


def _shared_text(name: str, array: pa.DictionaryArray) -> tuple[pa.Array, pa.Array | None]:
    """A column whose cells are indices into others. Those that would fill the memory are wrong values."""
    values = array.dictionary
    if not _is_text(values.type):
        return _arrow_text(name, array.dictionary_decode())
    fits = pc.less_equal(pc.binary_length(values), MAX_SHARED_BYTES)
    if pc.all(fits).as_py() is not False:
        return array.cast(pa.string()), None
    nothing = pa.scalar(None, values.type)
    text = pa.DictionaryArray.from_arrays(array.indices, pc.if_else(fits, values, nothing)).cast(pa.string())
    reason = pa.scalar(f"{name} has more than {MAX_SHARED_BYTES:,} bytes")
    return text, pc.if_else(pc.and_(array.is_valid(), text.is_null()), reason, pa.scalar(None, pa.string()))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _float_text(name: str, array: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """Floats are how pandas stores an empty column and seeds with gaps; anything else is a wrong value."""
    if name == "seed":
        return array.cast(pa.string()), None
    given = pc.fill_null(pc.invert(pc.is_nan(array)), fill_value=False)
    reason = pa.scalar(f"{name} is a number with a fraction, not a text")
    return pa.nulls(len(array), pa.string()), pc.if_else(given, reason, pa.scalar(None, pa.string()))


def _joined_lists(array: pa.Array) -> pa.Array:
    values = array.to_pylist()
    return pa.array([None if uris is None else join_uris([uri or "" for uri in uris]) for uris in values], pa.string())


_Reader = type[_CsvReader] | type[_JsonReader] | type[_ParquetReader]
_READERS: dict[str, _Reader] = {
    ".csv": _CsvReader,
    ".jsonl": _JsonReader,
    ".ndjson": _JsonReader,
    ".parquet": _ParquetReader,
}


def _check_columns(names: Sequence[str]) -> None:
    for name in REQUIRED_COLUMNS:
        if name not in names:
            found = ", ".join(repr(other) for other in names[:_MAX_NAMES_SHOWN])
            raise ConfigurationError(f"the column {name!r} is missing; found {found}{_misread(names, name)}.")
    repeated = sorted({name for name in names if name in COLUMNS and names.count(name) > 1})
    if repeated:
        raise ConfigurationError(f"the column {repeated[0]!r} appears twice; keep one of them.")


def _misread(names: Sequence[str], wanted: str) -> str:
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        return "; the cells must be separated by commas"
    candidates = [name for name in names if name not in COLUMNS]
    return _suggestion(wanted, candidates)


def _suggestion(name: str, candidates: Collection[str]) -> str:
    close = difflib.get_close_matches(name.lower().replace(" ", "_"), candidates, n=1, cutoff=0.7)
    folded = [candidate for candidate in candidates if candidate.lower() == name.lower()]
    best = (folded or close)[:1]
    return f" (did you mean {best[0]!r}?)" if best else ""


def _report_unknown(names: Sequence[str], on_unknown: Callable[[list[str]], None]) -> None:
    unknown = [name for name in names if name not in COLUMNS and name]
    if unknown:
        on_unknown(unknown)


def _to_schema(arrays: dict[str, pa.Array], num_rows: int, *, empty_is_null: bool = False) -> pa.RecordBatch:
    columns = [arrays.get(name, pa.nulls(num_rows, pa.string())) for name in CATALOG_SCHEMA.names]
    if empty_is_null:
        nothing = pa.scalar(None, pa.string())
        columns = [pc.if_else(pc.equal(column, ""), nothing, column) for column in columns]
    return pa.RecordBatch.from_arrays(columns, schema=CATALOG_SCHEMA)


def _broken(reason: str) -> Texts:
    return [*[None] * len(COLUMNS), reason]


def _skip_line(file: BinaryIO) -> None:
    while chunk := file.readline(MAX_LINE_BYTES):
        if chunk.endswith(b"\n"):
            return


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_utf16(file: BinaryIO) -> None:
    start = file.read(4)
    file.seek(0)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in start:
        raise ConfigurationError("the catalog is not UTF-8 (it looks like UTF-16 or a binary file); save it as UTF-8.")


def _ignore(names: list[str]) -> None:
    """For callers that have already been told."""


def _guarded(location: Location, action: Callable[[], Any]) -> Any:
    return next(_guarded_iterator(location, (action() for _ in range(1))))


def _guarded_iterator(location: Location, values: Iterator[Any]) -> Iterator[Any]:
    """Passes values on; whatever goes wrong with the file becomes a ConfigurationError that names it."""
    try:
        yield from values
    except ConfigurationError as error:
        if location.uri in str(error):
            raise
        raise ConfigurationError(f"catalog_uri {location.uri}: {error}") from error
    except Exception as error:
        if classify(error) == "permanent" and not isinstance(error, pa.ArrowException | OSError | ValueError):
            raise
        raise _unreadable(location, error) from error


def _unreadable(location: Location, error: Exception) -> ConfigurationError:
    reasons = {"missing": "does not exist", "denied": "may not be read; check the permissions and keys"}
    reason = reasons.get(classify(error), "cannot be read")
    return ConfigurationError(f"catalog_uri {location.uri} {reason} ({describe_error(error)}).")
