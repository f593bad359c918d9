"""What a benchmark is, whatever its files look like."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from tasks.catalog.rows import digest_hex, join_uris, to_canonical

Kind = Literal["generation", "editing", "people"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kind_of(benchmark: str) -> Kind:
    """Of a benchmark by its configured name, whether it is the real one or a miniature."""
    by_name: dict[str, Kind] = {"dreamedit": "editing", "people": "people"}
    return by_name.get(benchmark.removeprefix("mini-"), "generation")


@dataclass(frozen=True)
class BenchmarkCase:
    """One image to be made: a subject, a prompt, a seed; of an edit also the source and what is replaced in it."""

    case_id: str
    """Unique, and the same as long as the benchmark's files keep their names: backpack/p07/r2."""
    subject_id: str
    """Images of one subject are not independent: statistics cluster by it."""
    prompt_id: str
    """Equal for equal prompts but for the class word (p07); of an edit the source's file name without suffix."""
    subject_uris: tuple[str, ...]
    """Pictures that the method is given."""
    reference_uris: tuple[str, ...]
    """Pictures that identity is measured against."""
    subject_class: str
    prompt: str
    seed: int
    source_uri: str = ""
    mask_uri: str = ""

    @property
    def picture_uris(self) -> tuple[str, ...]:
        """Every picture that the case needs."""
        edit = tuple(uri for uri in (self.source_uri, self.mask_uri) if uri)
        return *self.subject_uris, *self.reference_uris, *edit


@dataclass(frozen=True)
class Benchmark:
    """The cases of a benchmark in order: by subject, prompt and run."""

    name: str
    kind: Kind
    cases: tuple[BenchmarkCase, ...]
    digest: str
    """32 hex digits, see `digest_cases`."""
    subset: str = ""
    """What was left out by a limit, for people: "4 of 30 subjects, 5 of 25 prompts". Empty: nothing."""


def catalog_rows(benchmark: Benchmark) -> Iterator[dict[str, str | int]]:
    """The cases as rows of a catalog (`tasks.catalog.rows`): the item_id is the case_id."""
    for case in benchmark.cases:
        yield to_row(case)


def to_row(case: BenchmarkCase) -> dict[str, str | int]:
    """A case as a row of a catalog. All rows have the same columns; "" means "not given"."""
    return {
        "item_id": case.case_id,
        "subject_uri": join_uris(case.subject_uris),
        "subject_class": case.subject_class,
        "prompt": case.prompt,
        "seed": case.seed,
        "source_uri": case.source_uri,
        "mask_uri": case.mask_uri,
    }


def digest_cases(kind: Kind, cases: tuple[BenchmarkCase, ...], hashes: Mapping[str, str]) -> str:
    """32 hex digits of everything that decides the cases; `hashes` has the digest of each picture's bytes by location.

    Pictures count by their bytes. Their locations do not count, so that a copy on another disk or store is the same
    benchmark; and there is nothing cheaper to trust: local files have no checksum, the ETag of an object depends on how
    it was uploaded, and a size survives an edit of pixels. A benchmark is some hundred pictures, all of which are read
    for the scores anyway.
    """
    described = [
        [
            case.case_id,
            case.subject_id,
            case.prompt_id,
            [hashes[uri] for uri in case.subject_uris],
            [hashes[uri] for uri in case.reference_uris],
            case.subject_class,
            case.prompt,
            case.seed,
            *([hashes[case.source_uri], hashes[case.mask_uri]] if case.source_uri else []),
        ]
        for case in cases
    ]
    return digest_hex(to_canonical(["ezigen-benchmark/1", kind, described]))
