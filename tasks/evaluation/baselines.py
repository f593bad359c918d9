"""Other methods whose images are made here, through diffusers, with the seeds of the benchmark's cases.

In the output: baselines/<digest>/<case_id>.png, where the digest names everything that decides an image, and
baselines/<digest>/ended/<shard>.json with what a picture does not say: its digest, its seconds, or why there is none.
An image that is there is never made again; a case that failed is tried again by the next run.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from ezigen.baselines import baseline_fingerprint, find_baseline
from ezigen.config import BaselineConfig, ConfigurationError, ItemError, StackConfig
from ezigen.images import Picture, decode_picture, encode_png
from tasks.catalog.rows import digest_hex, to_canonical
from tasks.cluster.model_memory import stored_memory_bytes, worker_memory_bytes
from tasks.evaluation.benchmarks import Benchmark, BenchmarkCase
from tasks.evaluation.external import ExternalMethod, find_images
from tasks.sharding.report import ShardReport, store_file
from tasks.storage import Locations, OutputFolder
from tasks.storage.documents import decode_document, encode_document
from tasks.storage.run_record import now_text

if TYPE_CHECKING:
    from ezigen.baselines import Baseline, BaselineRequest

logger = logging.getLogger(__name__)

FOLDER = "baselines"
CASES_PER_SHARD = 16
_ENDED = "ended"


@dataclass(frozen=True)
class PlannedBaseline:
    """A method and the cases of a benchmark that it has no image of."""

    name: str
    config: BaselineConfig
    benchmark: Benchmark
    digest: str
    """32 hex digits of the method's files and settings and of the benchmark."""
    cases: tuple[BenchmarkCase, ...] = field(repr=False)

    @property
    def title(self) -> str:
        """As progress calls it: one method may be made on several benchmarks."""
        return f"{self.name} on {self.benchmark.name}"

    def folder(self, output: OutputFolder) -> OutputFolder:
        """Where its images lie."""
        return OutputFolder(output.uri(f"{FOLDER}/{self.digest}"), output.locations)

    def make_shards(self) -> dict[str, tuple[BenchmarkCase, ...]]:
        """The cases by shard, those of one subject together. A shard's name is the digest of its cases."""
        parts = (self.cases[start : start + CASES_PER_SHARD] for start in range(0, len(self.cases), CASES_PER_SHARD))
        return {digest_hex(to_canonical([case.case_id for case in part])): part for part in parts}

    def worker_memory_bytes(self) -> int:
        """Main memory that a worker takes. Raises as `find_baseline`."""
        files = find_baseline(self.config)
        own = worker_memory_bytes(str(files.pipeline.path))
        return own if files.ip_adapter is None else own + stored_memory_bytes(str(files.ip_adapter.encoder))


def plan_baselines(
    configs: Mapping[str, BaselineConfig], benchmark: Benchmark, output: OutputFolder
) -> tuple[PlannedBaseline, ...]:
    """Decides what each of the methods, by name, is to make.

    Raises ConfigurationError for an editing benchmark, and as `ezigen.baselines.find_baseline` does.
    """
    check_suited(configs, benchmark.name, benchmark.kind)
    return tuple(_plan(name, config, benchmark, output) for name, config in configs.items())


def check_suited(configs: Mapping[str, BaselineConfig], benchmark: str, kind: str) -> None:
    """Raises ConfigurationError for methods on an editing benchmark."""
    if configs and kind == "editing":
        raise ConfigurationError(
            f"baselines {', '.join(configs)}: {benchmark} is a benchmark of editing, and these methods edit nothing; "
            "choose a benchmark of generation or of people, or give images that another program made (--images)"
        )


def read_baseline(planned: PlannedBaseline, output: OutputFolder) -> ExternalMethod:
    """What there is of a method, as images to be measured. Raises ConfigurationError for a damaged record."""
    folder = planned.folder(output)
    ended = _read_ended(folder)
    known = {case_id: one.sha256 for case_id, one in ended.items() if one.sha256}
    found = {
        case_id: replace(image, seconds=ended[case_id].seconds if case_id in known else None)
        for case_id, image in find_images(folder, planned.benchmark, known).items()
    }
    errors = {case_id: one.error for case_id, one in ended.items() if one.error and case_id not in found}
    return ExternalMethod(planned.name, folder.root_uri, found, errors)


def _plan(name: str, config: BaselineConfig, benchmark: Benchmark, output: OutputFolder) -> PlannedBaseline:
    digest = digest_hex(to_canonical(["ezigen-baseline/1", baseline_fingerprint(config), benchmark.digest]))
    whole = PlannedBaseline(name, config, benchmark, digest, benchmark.cases)
    there = read_baseline(whole, output).images
    return replace(whole, cases=tuple(case for case in benchmark.cases if case.case_id not in there))


# ---- the work


class _Ended(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a case ended: with an image, or with an error."""

    case_id: str
    sha256: str = ""
    seconds: float | None = None
    error: str = ""


class _Record(msgspec.Struct, frozen=True):
    """How the cases of a shard ended, and when."""

    ended_at: str
    cases: list[_Ended]


@dataclass
class BaselineWork:
    """The ShardWork of a method; see `tasks.sharding.ShardWork`."""

    folder: OutputFolder
    """Of the method."""
    shards: Mapping[str, tuple[BenchmarkCase, ...]] = field(repr=False)
    config: BaselineConfig
    model: StackConfig
    """Device and precision alone are taken."""
    locations: Locations
    """How the benchmark's pictures are reached."""
    num_threads: int = 1

    def open(self) -> None:
        """Loads the pipeline."""
        import torch

        from ezigen.baselines import load_baseline
        from ezigen.models.stack import choose_placement

        torch.set_num_threads(self.num_threads)
        device, dtype = choose_placement(self.model.device, self.model.dtype)
        self._baseline: Baseline = load_baseline(self.config, device=device, dtype=dtype)

    def make(self, shard: str) -> ShardReport:
        """Makes the images of a shard, stores each when its batch is made, and then how all of them ended."""
        cases = self.shards[shard]
        left = [case for case in cases if not self._is_there(case)]  # a worker may have died after some of them
        pictures: dict[str, Picture] = {}
        ended = [one for batch in self._batches(left) for one in self._make(batch, pictures)]
        data = encode_document(_Record(now_text(), ended))
        failed = sum(bool(one.error) for one in ended)
        return ShardReport(
            shard,
            len(cases) - failed,
            refused={"not made": failed} if failed else {},
            files=(store_file(self.folder, f"{_ENDED}/{shard}.json", data, len(ended)),),
        )

    def _batches(self, cases: Sequence[BenchmarkCase]) -> Iterator[Sequence[BenchmarkCase]]:
        """As many at a time as the method takes, of one subject."""
        by_subject: dict[tuple[str, ...], list[BenchmarkCase]] = {}
        for case in cases:
            by_subject.setdefault(case.subject_uris, []).append(case)
        for group in by_subject.values():
            while group:
                size = self._baseline.batch_size
                yield group[:size]
                del group[:size]

    def _make(self, cases: Sequence[BenchmarkCase], pictures: dict[str, Picture]) -> Iterator[_Ended]:
        requests: dict[BenchmarkCase, BaselineRequest] = {}
        for case in cases:
            try:
                requests[case] = self._to_request(case, pictures)
            except ItemError as error:
                yield _failed(case, error)
        started = time.perf_counter()
        images = self._baseline.make(list(requests.values()))
        seconds = (time.perf_counter() - started) / max(1, len(requests))
        for case, image in zip(requests, images, strict=True):
            if isinstance(image, ItemError):
                yield _failed(case, image)
                continue
            data = encode_png(image)
            self.folder.write(f"{case.case_id}.png", data)
            yield _Ended(case.case_id, hashlib.sha256(data).hexdigest(), round(seconds, 3))

    def _to_request(self, case: BenchmarkCase, pictures: dict[str, Picture]) -> "BaselineRequest":
        from ezigen.baselines import BaselineRequest

        uris = case.subject_uris if self._baseline.looks_at_subjects else ()
        for uri in uris:
            if uri not in pictures:
                pictures[uri] = decode_picture(self.locations.read_bytes(uri))
        return BaselineRequest(case.prompt, case.seed, tuple(pictures[uri] for uri in uris))

    def _is_there(self, case: BenchmarkCase) -> bool:
        return bool(self.folder.filesystem.exists(self.folder.path(f"{case.case_id}.png")))


def _failed(case: BenchmarkCase, error: ItemError) -> _Ended:
    logger.warning("case %s cannot be made: %s", case.case_id, error.message)
    return _Ended(case.case_id, error=f"{error.code.value}: {error.message}")


def _read_ended(folder: OutputFolder) -> dict[str, _Ended]:
    """How cases ended last, by case."""
    names = [f"{_ENDED}/{name}" for name in folder.list(_ENDED) if name.endswith(".json")]
    records = [decode_document(folder.read(name), folder.uri(name), _Record, "a record of images") for name in names]
    ordered = sorted(records, key=lambda record: record.ended_at)
    return {one.case_id: one for record in ordered for one in record.cases}
