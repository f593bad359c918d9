"""A benchmark's folder, with a list of all that is wrong with it."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

import msgspec
from PIL import Image

from ezigen.config import ConfigurationError
from ezigen.images import FORMATS
from tasks.datasets.folder import DatasetFolder
from tasks.storage.locations import Location, Locations

T = TypeVar("T")

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
_MAX_PROBLEMS_SHOWN = 30
_PARALLEL_READS = 16


@dataclass(frozen=True)
class Subject:
    """One subject: its id, its class word and its pictures, relative to the folder, sorted."""

    subject_id: str
    subject_class: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """What is asked of a subject: a prompt with `{subject_class}`; of an edit also the source and its mask."""

    prompt_id: str
    template: str
    source: str = ""
    mask: str = ""


Contents = list[tuple[Subject, tuple[Scene, ...]]]
"""A benchmark as its files have it: every subject with what is asked of it."""


class BenchmarkFolder(DatasetFolder):
    """A folder whose problems are gathered, so that all of them are said at once."""

    def __init__(self, root_uri: str, locations: Locations | None, field: str = "folder_uri") -> None:
        super().__init__(root_uri, field, locations)
        self.problems: list[str] = []

    def note(self, problem: str) -> None:
        """Remember something that is wrong; said once, however often it is met."""
        printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in problem)
        if printable not in self.problems:
            self.problems.append(printable)

    def check(self) -> None:
        """Raises ConfigurationError that lists every problem noted so far, if there are any."""
        if not self.problems:
            return
        shown = "".join(f"\n- {problem}" for problem in self.problems[:_MAX_PROBLEMS_SHOWN])
        left = len(self.problems) - _MAX_PROBLEMS_SHOWN
        more = f"\n- and {left} more" if left > 0 else ""
        noun = "problem" if len(self.problems) == 1 else "problems"
        raise self.refusal(f"the benchmark cannot be used, {len(self.problems)} {noun}:{shown}{more}")

    def uri(self, relative: str) -> str:
        """The location of something in the folder; "" stays empty."""
        return Location(self.root.scheme, f"{self.root.path.rstrip('/')}/{relative}").uri if relative else ""

    def folders(self, relative: str = "") -> list[str]:
        """The names of the folders in a folder, sorted."""
        return [name for name, is_folder in self.entries(relative).items() if is_folder]

    def pictures(self, relative: str = "") -> tuple[str, ...]:
        """The pictures in a folder, relative to the root and sorted."""
        prefix = f"{relative}/" if relative else ""
        names = (name for name, is_folder in self.entries(relative).items() if not is_folder)
        return tuple(prefix + name for name in names if name.lower().endswith(PICTURE_SUFFIXES))

    def subject(self, name: str, subject_class: str, relative: str) -> Subject:
        """The subject whose pictures a folder holds. If there are none, that is noted."""
        pictures = self.pictures(relative)
        if not pictures:
            self.note(f"{relative}: this subject has no picture")
        return Subject(name, subject_class, pictures)

    def text(self, relative: str) -> str | None:
        """The text of a file, None if it cannot be read, which is noted."""
        data = self.attempt(lambda: self.load(relative))
        if data is None:
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.note(f"{relative} is not UTF-8; save it as UTF-8")
            return None

    def words(self, relative: str) -> dict[str, str]:
        """A JSON object of texts by name; empty if it cannot be read, which is noted."""
        data = self.attempt(lambda: self.load(relative))
        if data is None:
            return {}
        try:
            return self.attempt(lambda: self.parse(relative, data, dict[str, str])) or {}
        except msgspec.ValidationError as error:
            self.note(f"{relative} must be a JSON object of texts by name ({error})")
            return {}

    def hash_pictures(self, relatives: Sequence[str]) -> dict[str, str]:
        """The digest of each picture's bytes by its location. What is no picture is noted."""
        with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="read-benchmark") as pool:
            found = list(pool.map(self._look_at_picture, relatives))
        for _, problem in found:
            if problem:
                self.note(problem)
        return {self.uri(relative): digest for relative, (digest, _) in zip(relatives, found, strict=True)}

    def attempt(self, action: Callable[[], T]) -> T | None:
        """The action's value, or None for a ConfigurationError, whose reason is noted."""
        try:
            return action()
        except ConfigurationError as error:
            self.note(self._reason(error))
            return None

    def _look_at_picture(self, relative: str) -> tuple[str, str]:
        """The digest of its bytes, and what is wrong with it."""
        try:
            data = self.load(relative)
        except ConfigurationError as error:
            return "", self._reason(error)
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        try:
            Image.open(BytesIO(data), formats=FORMATS).close()
        except Exception:  # noqa: BLE001 - damaged headers make Pillow raise nearly anything
            start = data[:20].decode("ascii", "replace")
            return digest, f"{relative} is not a picture (it starts with {start!r}); download it again"
        return digest, ""

    def _reason(self, error: ConfigurationError) -> str:
        """The error without the folder, which is said once."""
        return str(error).removeprefix(str(self.refusal(""))).rstrip(".")
