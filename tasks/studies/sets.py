"""The images that a study compares: of catalog runs by item_id, of plain folders by file name."""

import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from ezigen.config import CatalogInputs, ConfigurationError, ErrorCode, ItemError
from tasks.catalog.results import ResultRow, from_batch
from tasks.catalog.rows import CatalogRow, parse_row, split_uris
from tasks.datasets.catalogs import read_catalog
from tasks.reports.pictures import read_stored, subject_locations
from tasks.storage import Locations, OutputFolder, ResultsLedger, RunOutput, locate

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_ROW_COLUMNS = ("item_id", "finished_at", "image_uri", "prompt", "subject_uri")


@dataclass(frozen=True)
class Description:
    """What every image of a case is to show: the text, and where the subject's pictures lie."""

    prompt: str
    subject_uris: tuple[str, ...] = ()
    locations: Locations | None = None
    """None where nothing says from which folder relative locations start."""


@dataclass(frozen=True)
class Found:
    """One image of a set by its path within the set's folder, and what the set knows of the case."""

    path: str
    description: Description | None = None


class ResultSet(Protocol):
    """Images of one method by case."""

    @property
    def folder(self) -> OutputFolder:
        """Where they lie."""

    def case_ids(self) -> set[str]:
        """The cases that have an image."""

    def find(self, case_ids: Collection[str]) -> Mapping[str, Found]:
        """The images of some cases."""


class Descriptions(Protocol):
    """What cases are about, told from outside the sets."""

    def find(self, case_ids: Collection[str]) -> Mapping[str, Description]:
        """Some cases, as far as they are known."""


def open_set(name: str, uri: str, locations: Locations) -> ResultSet:
    """The output of a run, or a folder of images. Raises ConfigurationError if it is neither."""
    output = RunOutput(uri, locations)
    if output.list_results():
        return RunSet(output)
    folder = FolderSet(OutputFolder(uri, locations))
    if not folder.files:
        raise ConfigurationError(
            f"--set {name}={uri}: neither the output of a run nor a folder of images ({', '.join(SUFFIXES)})."
        )
    return folder


def read_set(source: ResultSet, found: Found) -> bytes:
    """The bytes of an image. Raises ItemError."""
    return read_stored(source.folder, found.path)


class RunSet:
    """The images of a catalog run; of several with one item_id the one that was finished last."""

    def __init__(self, output: RunOutput) -> None:
        self.folder: OutputFolder = output
        self._ledger = ResultsLedger(output)

    @cached_property
    def _locations(self) -> Locations | None:
        return subject_locations(self.folder)

    def case_ids(self) -> set[str]:
        """The items that have an image."""
        ids: set[str] = set()
        for batch in self._ledger.batches("done", ["item_id"]):
            ids.update(batch.column("item_id").to_pylist())
        return ids

    def find(self, case_ids: Collection[str]) -> Mapping[str, Found]:
        """The images of some items, with their prompts and subjects."""
        wanted = pa.array(sorted(case_ids), pa.string())
        rows: dict[str, ResultRow] = {}
        for batch in self._ledger.batches("done", _all_columns()):
            for row in from_batch(batch.filter(pc.is_in(batch.column("item_id"), wanted))):
                if row.item_id not in rows or row.finished_at > rows[row.item_id].finished_at:
                    rows[row.item_id] = row
        return {name: Found(row.image_uri or "", self._describe(row)) for name, row in rows.items()}

    def _describe(self, row: ResultRow) -> Description:
        return Description(row.prompt, tuple(split_uris(row.subject_uri)), self._locations)


def _all_columns() -> list[str]:
    return sorted({*_ROW_COLUMNS, "item_key", "row_index", "run_id", "status", "attempts"})


class FolderSet:
    """Images in one folder; a file's name without its suffix names the case."""

    def __init__(self, folder: OutputFolder) -> None:
        self.folder = folder

    @cached_property
    def files(self) -> Mapping[str, str]:
        """File by case. Raises ConfigurationError for two files of one case."""
        return pictures_by_stem(self.folder)

    def case_ids(self) -> set[str]:
        """The cases that have an image."""
        return set(self.files)

    def find(self, case_ids: Collection[str]) -> Mapping[str, Found]:
        """The images of some cases; nothing more is known of them."""
        return {name: Found(self.files[name]) for name in case_ids if name in self.files}


def pictures_by_stem(folder: OutputFolder) -> dict[str, str]:
    """File name by stem of the pictures of a folder. Raises ConfigurationError for two files of one stem."""
    files: dict[str, str] = {}
    for name in folder.list(""):
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() not in SUFFIXES:
            continue
        if stem in files:
            raise ConfigurationError(f"{folder.root_uri} holds both {files[stem]} and {name}; keep one of them.")
        files[stem] = name
    return files


class FolderDescriptions:
    """A folder with <case>.png (or another picture) and <case>.txt, which holds the prompt."""

    def __init__(self, uri: str, locations: Locations) -> None:
        self._folder = OutputFolder(uri, locations)
        root = locate(uri).uri
        options = locations.storage_options
        self._locations = Locations(allowed_roots=(root,), base_uri=root, storage_options=options)
        self._files = pictures_by_stem(self._folder)
        self._names = set(self._folder.list(""))
        if not self._files:
            raise ConfigurationError(f"--subjects {uri}: there is no picture ({', '.join(SUFFIXES)}).")

    def find(self, case_ids: Collection[str]) -> Mapping[str, Description]:
        """Some cases, as far as they have a picture or a text."""
        return {name: self._describe(name) for name in case_ids if name in self._files or f"{name}.txt" in self._names}

    def _describe(self, name: str) -> Description:
        prompt = self._read_text(f"{name}.txt") if f"{name}.txt" in self._names else ""
        return Description(prompt, (self._files[name],) if name in self._files else (), self._locations)

    def _read_text(self, name: str) -> str:
        try:
            return read_stored(self._folder, name).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{self._folder.uri(name)} is not UTF-8 text; save it as UTF-8.") from error


class CatalogDescriptions:
    """The rows of a catalog by item_id."""

    def __init__(self, uri: str, locations: Locations) -> None:
        self._uri = uri
        inputs = CatalogInputs(catalog_uri=uri, output_uri=uri)
        self._locations = Locations.for_catalog(inputs, locations.storage_options)

    def find(self, case_ids: Collection[str]) -> Mapping[str, Description]:
        """Some cases, as far as the catalog has a valid row; of several the first."""
        wanted = pa.array(sorted(case_ids), pa.string())
        described: dict[str, Description] = {}
        for batch in read_catalog(self._uri, self._locations):
            ids = pc.utf8_trim_whitespace(batch.column("item_id"))
            for row in _valid_rows(batch.filter(pc.is_in(ids, wanted)).to_pylist()):
                described.setdefault(row.item_id, Description(row.prompt, row.subject_uris, self._locations))
        return described


def _valid_rows(values: Sequence[Mapping[str, str | None]]) -> list[CatalogRow]:
    rows = []
    for cells in values:
        try:
            rows.append(parse_row(0, cells))
        except ItemError as error:
            # A refused row describes no case, and the study says which cases have no description.
            if error.code is not ErrorCode.ROW_INVALID:
                raise
    return rows
