"""Images that another method made of a benchmark's cases, so that they are measured by the same code."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ezigen.config import ConfigurationError
from tasks.evaluation.benchmarks import Benchmark
from tasks.evaluation.folder import PICTURE_SUFFIXES
from tasks.storage import Locations, OutputFolder, ResultsLedger, RunOutput
from tasks.storage.filesystems import describe_error, with_retries

_PARALLEL_READS = 16
_MAX_EXAMPLES = 3


@dataclass(frozen=True)
class FoundImage:
    """An image by its location and the SHA-256 of its bytes; seconds: what it cost, if that is known."""

    uri: str
    sha256: str
    seconds: float | None = None


@dataclass(frozen=True)
class ExternalMethod:
    """Another method by its name, and its images by case; a case without one is counted as missing.

    errors: by case why there is no image, as far as that is known.
    """

    name: str
    root_uri: str
    images: Mapping[str, FoundImage] = field(repr=False)
    errors: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_external(
    name: str, location: str, benchmarks: Sequence[Benchmark], locations: Locations | None = None
) -> dict[str, ExternalMethod]:
    """The images of a method by the names of those benchmarks that it has any of: an output of `ezigen personalize`,
    where the item_id is the case_id, or a folder with `<case_id>.png` (backpack/p07/r2.png; .jpg, .webp and the like as
    well).

    Raises ConfigurationError where not a single case has an image, and says how files have to be called.
    """
    output = RunOutput(location, locations)
    find = _of_run if output.list_results() else find_images
    found = {benchmark.name: find(output, benchmark) for benchmark in benchmarks}
    if not any(found.values()):
        names = ", ".join(benchmark.name for benchmark in benchmarks)
        examples = ", ".join(f"{case.case_id}.png" for case in benchmarks[0].cases[:_MAX_EXAMPLES])
        raise ConfigurationError(
            f"images {name}: {output.root_uri} has no image of {names}; call them {examples}, ..., or give an "
            "output of ezigen personalize whose item_ids are the cases"
        )
    return {benchmark: ExternalMethod(name, output.root_uri, images) for benchmark, images in found.items() if images}


def find_images(
    folder: OutputFolder, benchmark: Benchmark, known: Mapping[str, str] | None = None
) -> dict[str, FoundImage]:
    """The images in a folder that are called as a benchmark's cases, by case; an absent folder has none.

    known: SHA-256 by case of images that need not be read. Raises ConfigurationError where it cannot be listed.
    """
    known = known or {}
    filesystem, root = folder.filesystem, folder.root.path.rstrip("/")
    try:
        paths = with_retries(lambda: filesystem.find(root), f"listing {folder.root_uri}")
    except OSError as error:
        raise ConfigurationError(f"images {folder.root_uri} cannot be listed ({describe_error(error)})") from error
    by_stem: dict[str, str] = {}
    for path in sorted(paths):
        stem, dot, suffix = path.removeprefix(root).lstrip("/").rpartition(".")
        if f"{dot}{suffix.lower()}" in PICTURE_SUFFIXES:
            by_stem.setdefault(stem, f"{stem}{dot}{suffix}")
    found = {case.case_id: by_stem[case.case_id] for case in benchmark.cases if case.case_id in by_stem}
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="read-images") as pool:
        sums = pool.map(lambda case_id: known.get(case_id) or _hash(folder, found[case_id]), found)
        return {
            case_id: FoundImage(folder.uri(relative), sha256)
            for (case_id, relative), sha256 in zip(found.items(), sums, strict=True)
        }


def _hash(folder: OutputFolder, relative: str) -> str:
    return hashlib.sha256(folder.read(relative)).hexdigest()


def _of_run(output: RunOutput, benchmark: Benchmark) -> dict[str, FoundImage]:
    wanted = {case.case_id for case in benchmark.cases}
    rows = ResultsLedger(output).rows("done", ["item_id", "image_uri", "image_sha256"])
    return {
        row.item_id: FoundImage(output.uri(row.image_uri), row.image_sha256)
        for row in rows
        if row.item_id in wanted and row.image_uri and row.image_sha256
    }
