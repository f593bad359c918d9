"""A benchmark's folder, whatever its layout, as cases."""

from collections.abc import Iterable, Iterator

from ezigen.config import BenchmarkConfig, ItemError
from ezigen.config.benchmark import BenchmarkKind
from tasks.catalog.rows import MAX_SUBJECTS, derive_seed, parse_row
from tasks.evaluation.benchmarks import Benchmark, BenchmarkCase, Kind, digest_cases, kind_of, to_row
from tasks.evaluation.editing import read_dreamedit
from tasks.evaluation.folder import BenchmarkFolder, Contents, Scene, Subject
from tasks.evaluation.generation import PEOPLE_CLASSES, read_dreambench, read_own, read_people
from tasks.evaluation.miniature import write_miniature
from tasks.evaluation.prompts import CLASS_FIELD
from tasks.storage.locations import Locations

_MINIATURES: dict[Kind, BenchmarkKind] = {
    "generation": "mini-dreambench",
    "editing": "mini-dreamedit",
    "people": "mini-people",
}


def read_benchmarks(
    config: BenchmarkConfig, kinds: Iterable[Kind], locations: Locations | None = None
) -> tuple[Benchmark, ...]:
    """The benchmark that is configured; of "mini" the miniatures of these kinds. See `read_benchmark`."""
    if config.kind != "mini":
        return (read_benchmark(config, locations),)
    names = [_MINIATURES[kind] for kind in dict.fromkeys(kinds)]
    return tuple(read_benchmark(config.model_copy(update={"kind": name}), locations) for name in names)


def read_benchmark(config: BenchmarkConfig, locations: Locations | None = None) -> Benchmark:
    """The cases of a benchmark. Every picture that they need is read once, for the digest.

    Raises ConfigurationError that lists everything found to be wrong with the folder. Limits (`num_subjects`,
    `num_prompts`) leave cases out and change none, nor do they spare the rest of the folder the check of its names.
    """
    root = config.folder_uri
    if config.kind.startswith("mini-"):
        root = write_miniature(config.kind, root, locations)
    folder = BenchmarkFolder(root, locations)
    whole = _read_contents(folder, config, locations)
    contents = [
        (subject, scenes[: config.num_prompts or None]) for subject, scenes in whole[: config.num_subjects or None]
    ]
    needed = dict.fromkeys(path for subject, scenes in contents for path in _paths(subject, scenes))
    hashes = folder.hash_pictures(list(needed))
    folder.check()
    kind = kind_of(config.kind)
    cases = tuple(_make_cases(folder, contents, config, kind))
    for index, case in enumerate(cases):
        _check_case(folder, index, case)
    folder.check()
    return Benchmark(config.kind, kind, cases, digest_cases(kind, cases, hashes), _describe_subset(whole, contents))


def _read_contents(folder: BenchmarkFolder, config: BenchmarkConfig, locations: Locations | None) -> Contents:
    if config.kind in ("dreambench", "mini-dreambench"):
        return read_dreambench(folder)
    if config.kind in ("dreamedit", "mini-dreamedit"):
        return read_dreamedit(folder)
    if config.kind == "own":
        return read_own(folder, config, locations)
    # The world's creatures are no people, and the embedded model knows no word for one.
    return read_people(folder, config, locations, PEOPLE_CLASSES if config.kind == "people" else ())


def _paths(subject: Subject, scenes: tuple[Scene, ...]) -> Iterator[str]:
    yield from subject.pictures
    for scene in scenes:
        yield from (path for path in (scene.source, scene.mask) if path)


def _make_cases(
    folder: BenchmarkFolder, contents: Contents, config: BenchmarkConfig, kind: Kind
) -> Iterator[BenchmarkCase]:
    num_given = 1 if config.subject_pictures == "first" else MAX_SUBJECTS
    for subject, scenes in contents:
        pictures = tuple(folder.uri(path) for path in subject.pictures)
        given = pictures[:num_given]
        for scene in scenes:
            prompt = scene.template.replace(CLASS_FIELD, subject.subject_class)
            for run in range(config.runs):
                case_id = f"{subject.subject_id}/{scene.prompt_id}/r{run}"
                yield BenchmarkCase(
                    case_id=case_id,
                    subject_id=subject.subject_id,
                    prompt_id=scene.prompt_id,
                    subject_uris=given,
                    # FastComposer measures people against the picture that is given, the others against all.
                    reference_uris=given if kind == "people" else pictures,
                    subject_class=subject.subject_class,
                    prompt=prompt,
                    seed=derive_seed(case_id, prompt),
                    source_uri=folder.uri(scene.source),
                    mask_uri=folder.uri(scene.mask),
                )


def _check_case(folder: BenchmarkFolder, index: int, case: BenchmarkCase) -> None:
    """Notes what a catalog would refuse: a name that cannot be printed, a prompt that is too long."""
    texts = {name: str(value) for name, value in to_row(case).items()}
    try:
        parse_row(index, texts)
    except ItemError as error:
        folder.note(f"{case.subject_id}, prompt {case.prompt_id}: {error.message.rstrip('.')}")


def _describe_subset(whole: Contents, contents: Contents) -> str:
    parts = []
    if len(contents) < len(whole):
        parts.append(f"{len(contents)} of {len(whole)} subjects")
    used, given = (max((len(scenes) for _, scenes in part), default=0) for part in (contents, whole))
    if used < given:
        noun = "sources" if any(scene.source for _, scenes in whole for scene in scenes) else "prompts"
        parts.append(f"{used} of {given} {noun}")
    return ", ".join(parts)
