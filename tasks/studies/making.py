"""Makes a blind preference study: a page for raters and, beside it, the key that tells what they saw."""

import hashlib
import hmac
import posixpath
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from PIL import Image

from ezigen.config import ConfigurationError, ErrorCode, ItemError
from ezigen.images import Picture, decode_picture, fit_square
from tasks.reports.pictures import choose_side, read_subject, shrunk, to_page_uri
from tasks.storage import Location, Locations, locate
from tasks.storage.documents import encode_document
from tasks.storage.writing import write_atomic, write_new
from tasks.studies.key import KEY_FORMAT, KeyCase, StudyKey
from tasks.studies.page import PageCase, render_study
from tasks.studies.questions import QUESTIONS, Question
from tasks.studies.sets import (
    CatalogDescriptions,
    Description,
    Descriptions,
    FolderDescriptions,
    Found,
    ResultSet,
    open_set,
    read_set,
)

MAX_SETS = 9
"""As many as there are digits to choose by."""
_SUBJECT_PX = 384


@dataclass(frozen=True)
class StudyRequest:
    """What is compared, and how."""

    sets: Mapping[str, str]
    """Method -> output of a run, or folder of images."""
    questions: tuple[Question, ...] = QUESTIONS
    num_cases: int = 0
    """0 takes every case that all sets have."""
    seed: int = 0
    """Of the sample of cases. What hides the methods is random each time, so that nobody can work it out."""
    catalog_uri: str = ""
    subjects_uri: str = ""
    side_px: int = 0
    """Longest side of an image in the page; 0 chooses by the number of images."""


@dataclass(frozen=True)
class Study:
    """What was made."""

    page_uri: str
    key_uri: str
    digest: str
    num_cases: int
    num_common: int
    side_px: int
    page_bytes: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Case -> why it could not be shown."""


class _Case(NamedTuple):
    """A case that can be shown: its pictures by method, all of one size."""

    name: str
    prompt: str
    subjects: tuple[str, ...]
    images: Mapping[str, str]


def write_study(output_uri: str, request: StudyRequest, locations: Locations | None = None) -> Study:
    """Writes OUTPUT.html and OUTPUT.key.json.

    Raises ConfigurationError if a file of these names exists, for less than two sets, for sets without a common case,
    and if no case can be shown.
    """
    locations = locations or Locations()
    page, key = _targets(output_uri, locations)
    maker = _Maker(request, locations)
    common = maker.common_cases()
    cases, left_out = maker.choose(common)
    if not cases:
        name, reason = next(iter(left_out.items()))
        raise ConfigurationError(f"none of {len(common)} common cases can be shown; the first one, {name}: {reason}")
    shown, key_cases = _hide(cases, request.sets, secrets.token_bytes(32))
    html, digest = render_study(shown, request.questions)
    secret = StudyKey(
        KEY_FORMAT,
        digest,
        {name: locate(uri).uri for name, uri in request.sets.items()},
        {question.name: question.text for question in request.questions},
        request.seed,
        datetime.now(UTC).isoformat(timespec="seconds"),
        key_cases,
    )
    # The key first: a page without its key would collect answers that nobody can read.
    if not write_new(locations.filesystem(key), key.path, encode_document(secret)):
        raise _exists(key)
    write_atomic(locations.filesystem(page), page.path, html)
    return Study(page.uri, key.uri, digest, len(cases), len(common), maker.side_px, len(html), left_out)


def _targets(uri: str, locations: Locations) -> tuple[Location, Location]:
    page = locate(uri)
    if page.suffix not in (".html", ".htm"):
        raise ConfigurationError(f"{uri}: the page's name must end in .html.")
    key = Location(page.scheme, posixpath.splitext(page.path)[0] + ".key.json")
    for target in (page, key):
        if locations.filesystem(target).exists(target.path):
            raise _exists(target)
    return page, key


def _exists(target: Location) -> ConfigurationError:
    return ConfigurationError(
        f"{target.uri} exists, and answers may refer to it; choose another name, or delete that study's page and key."
    )


class _Maker:
    def __init__(self, request: StudyRequest, locations: Locations) -> None:
        self._request = request
        _check(request)
        self._sets = {name: open_set(name, uri, locations) for name, uri in request.sets.items()}
        self._described = _open_descriptions(request, locations)
        self._needs = {question.needs for question in request.questions}
        self.side_px = 0

    def common_cases(self) -> list[str]:
        """Cases of every set, in the order in which they are taken. Raises ConfigurationError if there are none."""
        by_set = {name: source.case_ids() for name, source in self._sets.items()}
        common = sorted(set.intersection(*by_set.values()))
        if not common:
            counts = ", ".join(f"{name} has {len(ids)}, such as {min(ids)!r}" for name, ids in by_set.items() if ids)
            raise ConfigurationError(
                f"the sets have no case in common ({counts or 'empty'}); images of runs are matched by item_id, "
                "those of folders by file name without suffix."
            )
        random.Random(self._request.seed).shuffle(common)
        return common

    def choose(self, common: Sequence[str]) -> tuple[list[_Case], dict[str, str]]:
        """The first cases that can be shown, as many as are wanted, and what was passed over."""
        wanted = min(self._request.num_cases or len(common), len(common))
        self.side_px = self._request.side_px or choose_side(wanted * len(self._sets))
        cases: list[_Case] = []
        left_out: dict[str, str] = {}
        for name, found, description in self._look_up(common, wanted):
            if len(cases) == wanted:
                break
            try:
                cases.append(self._make(name, found, description))
            except ItemError as error:
                left_out[name] = error.message
        return cases, left_out

    def _look_up(
        self, common: Sequence[str], at_once: int
    ) -> Iterator[tuple[str, Mapping[str, Found], Description | None]]:
        """What the sets know of each case. As many as are wanted are looked up together: a set is read as a whole."""
        for start in range(0, len(common), at_once):
            names = common[start : start + at_once]
            found = {method: source.find(names) for method, source in self._sets.items()}
            described = self._described.find(names) if self._described else {}
            for name in names:
                yield name, {method: images[name] for method, images in found.items()}, described.get(name)

    def _make(self, name: str, found: Mapping[str, Found], description: Description | None) -> _Case:
        known = [entry.description for entry in found.values() if entry.description is not None]
        if len({one.prompt for one in known}) > 1:
            raise ItemError(ErrorCode.ROW_INVALID, "the sets were made with different prompts")
        told = description or (known[0] if known and self._described is None else Description(""))
        if "prompt" in self._needs and not told.prompt:
            raise ItemError(
                ErrorCode.ROW_INVALID, "there is no prompt for it; give --catalog, or <case>.txt in --subjects"
            )
        pictures = {method: _read_image(self._sets[method], entry) for method, entry in found.items()}
        side = min(self.side_px, max(max(picture.rgb.size) for picture in pictures.values()))
        images = {method: to_page_uri(fit_square(picture, side).rgb) for method, picture in pictures.items()}
        return _Case(name, told.prompt, self._subjects(told), images)

    def _subjects(self, told: Description) -> tuple[str, ...]:
        """The subject's pictures; none where no question needs them and they cannot be shown."""
        try:
            pictures = _read_subjects(told)
        except ItemError:
            if "subject" in self._needs:
                raise
            return ()
        return tuple(to_page_uri(shrunk(picture, min(_SUBJECT_PX, self.side_px))) for picture in pictures)


def _read_subjects(told: Description) -> list[Image.Image]:
    if told.locations is None or not told.subject_uris:
        message = "there is no subject picture for it; give --catalog, or --subjects with <case>.png"
        raise ItemError(ErrorCode.IMAGE_MISSING, message)
    return [read_subject(uri, told.locations) for uri in told.subject_uris]


def _check(request: StudyRequest) -> None:
    if not 2 <= len(request.sets) <= MAX_SETS:
        raise ConfigurationError(
            f"{len(request.sets)} sets are given; a study compares 2 to {MAX_SETS}: --set NAME=LOCATION."
        )
    if request.catalog_uri and request.subjects_uri:
        raise ConfigurationError("--catalog and --subjects both say what the cases are about; keep one of them.")


def _open_descriptions(request: StudyRequest, locations: Locations) -> Descriptions | None:
    if request.catalog_uri:
        return CatalogDescriptions(request.catalog_uri, locations)
    return FolderDescriptions(request.subjects_uri, locations) if request.subjects_uri else None


def _read_image(source: ResultSet, found: Found) -> Picture:
    return Picture(decode_picture(read_set(source, found), min_side_px=1).rgb)


def _hide(cases: Sequence[_Case], methods: Mapping[str, str], secret: bytes) -> tuple[list[PageCase], list[KeyCase]]:
    """The cases as the page shows them, images in the order of labels that say nothing, and what the labels mean."""
    shown, keys = [], []
    for number, case in enumerate(cases, 1):
        name = f"case-{number:03d}"
        labels = {_label(secret, name, method): method for method in methods}
        shown.append(PageCase(name, case.prompt, case.subjects, {x: case.images[labels[x]] for x in sorted(labels)}))
        keys.append(KeyCase(name, case.name, labels))
    return shown, keys


def _label(secret: bytes, case: str, method: str) -> str:
    return hmac.new(secret, f"{case}\0{method}".encode(), hashlib.sha256).hexdigest()[:12]
