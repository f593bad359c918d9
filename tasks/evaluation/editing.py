"""DreamEditBench: subjects that take the place of others in source pictures."""

from tasks.evaluation.folder import BenchmarkFolder, Contents, Scene, Subject
from tasks.evaluation.generation import PROMPTS_AND_CLASSES
from tasks.evaluation.prompts import CLASS_FIELD, read_prompts_and_classes, wrong_template

SUBJECTS = "subjects.json"
EDIT_PROMPTS = "prompts.json"
SOURCES, MASKS = "replacement_source", "replacement_mask"
PROMPT = f"a photo of a {CLASS_FIELD}"
"""What an edit shall show, where nothing else is said: the query that DreamEditBench's sources were found with."""


def read_dreamedit(folder: BenchmarkFolder) -> Contents:
    """DreamEditBench in one of two layouts.

    As published (subject replacement alone): `data/replacement_source/<subject>/*.jpg`. Published are the sources and
    nothing else, so two things are put beside them: DreamBench's `dataset/`, for the subjects and their classes, and
    `data/replacement_mask/<subject>/`, a mask of the same name per source. The folder may also be `data` itself.

    In one piece: `<subject>/{subject,source,mask}` and `subjects.json`, class by subject.

    Both may have `prompts.json` with a prompt by `<subject>/<source's name without suffix>`.
    """
    return _with_prompts(folder, _read_one_piece(folder) if folder.has(SUBJECTS) else _read_published(folder))


def _read_one_piece(folder: BenchmarkFolder) -> Contents:
    classes = folder.words(SUBJECTS)
    if not classes:
        folder.note(f"{SUBJECTS} lists no subject")
    for name in folder.folders():
        if name not in classes:
            folder.note(f"{name}: the class of this subject is unknown; {SUBJECTS} does not list it")
    return [
        (folder.subject(name, word, f"{name}/subject"), _scenes(folder, f"{name}/source", f"{name}/mask"))
        for name, word in classes.items()
    ]


def _read_published(folder: BenchmarkFolder) -> Contents:
    base = "data/" if folder.has(f"data/{SOURCES}") else ""
    names = folder.folders(base + SOURCES)
    if not names:
        folder.note(f"neither {SUBJECTS} nor data/{SOURCES}/ is there ({folder.describe()})")
    return [
        (subject, _scenes(folder, f"{base}{SOURCES}/{subject.subject_id}", f"{base}{MASKS}/{subject.subject_id}"))
        for subject in _borrowed_subjects(folder, names)
    ]


def _borrowed_subjects(folder: BenchmarkFolder, names: list[str]) -> list[Subject]:
    """The subjects of these names, out of DreamBench."""
    table = f"dataset/{PROMPTS_AND_CLASSES}"
    if not folder.has(table):
        folder.note(f"{table} is missing: the subjects and their classes are DreamBench's; put its dataset/ here")
        return [Subject(name, "", ()) for name in names]
    said = read_prompts_and_classes(folder, table)
    classes = said.classes if said else {}
    for name in names:
        if name not in classes:
            folder.note(f"{name}: the class of this subject is unknown; {table} does not list it")
    return [folder.subject(name, classes.get(name, ""), f"dataset/{name}") for name in names]


def _scenes(folder: BenchmarkFolder, sources: str, masks: str) -> tuple[Scene, ...]:
    """Every source with its mask. A source without one, a mask without a source, and no source at all are noted."""
    mask_by_stem, source_by_stem = _by_stem(folder, masks), _by_stem(folder, sources)
    if not source_by_stem:
        folder.note(f"{sources}: there is no source")
    if source_by_stem and not mask_by_stem:
        folder.note(f"{sources}: no source has a mask; {masks}/ is empty or missing")
    for stem, path in source_by_stem.items():
        if mask_by_stem and stem not in mask_by_stem:
            folder.note(f"{path}: this source has no mask; {masks}/{stem}.png is missing")
    for stem, path in mask_by_stem.items():
        if stem not in source_by_stem:
            folder.note(f"{path}: this mask has no source")
    return tuple(Scene(stem, PROMPT, path, mask_by_stem.get(stem, "")) for stem, path in source_by_stem.items())


def _by_stem(folder: BenchmarkFolder, place: str) -> dict[str, str]:
    """The pictures in a folder by file name without suffix. Two of one name are noted."""
    found: dict[str, str] = {}
    for path in folder.pictures(place):
        stem = path.rpartition("/")[2].rpartition(".")[0]
        if stem in found:
            folder.note(f"{path}: there is also {found[stem]}; keep one of them")
        found.setdefault(stem, path)
    return found


def _with_prompts(folder: BenchmarkFolder, contents: Contents) -> Contents:
    """The same with the prompts that `prompts.json` has for some of the edits."""
    given = folder.words(EDIT_PROMPTS) if folder.has(EDIT_PROMPTS) else {}
    for key, template in given.items():
        if wrong := wrong_template(template):
            folder.note(f"{EDIT_PROMPTS}, {key} {wrong}: {template[:80]!r}")
    known = {f"{subject.subject_id}/{scene.prompt_id}" for subject, scenes in contents for scene in scenes}
    for key in sorted(given.keys() - known):
        folder.note(f"{EDIT_PROMPTS} has a prompt for {key!r}, which is no source")
    return [
        (subject, tuple(_prompted(scene, given.get(f"{subject.subject_id}/{scene.prompt_id}")) for scene in scenes))
        for subject, scenes in contents
    ]


def _prompted(scene: Scene, template: str | None) -> Scene:
    return scene if template is None else Scene(scene.prompt_id, template, scene.source, scene.mask)
