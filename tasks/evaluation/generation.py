"""Benchmarks of subjects and prompts: DreamBench, people, and one's own."""

import re

from ezigen.config import BenchmarkConfig
from tasks.evaluation.folder import BenchmarkFolder, Contents, Scene, Subject
from tasks.evaluation.prompts import PromptsAndClasses, number_prompts, read_prompts, read_prompts_and_classes
from tasks.storage.locations import Location, Locations, locate

PROMPTS_AND_CLASSES = "prompts_and_classes.txt"
CLASSES = "classes.json"
PROMPTS = "prompts.txt"

LIVE_CLASSES = ("cat", "dog")
"""Classes whose subjects get the "Live Subject Prompts". The file itself does not say which do; the DreamBooth paper
(section 4.1) counts 21 objects and 9 live subjects, and 9 is the number of its cats and dogs.
"""

PEOPLE_CLASSES = ("man", "woman", "person")


def read_dreambench(folder: BenchmarkFolder) -> Contents:
    """DreamBench as published: `dataset/<subject>/*.jpg` and `dataset/prompts_and_classes.txt`; the folder may also be
    `dataset` itself.
    """
    base = "" if folder.has(PROMPTS_AND_CLASSES) else "dataset/"
    if base and not folder.has(base + PROMPTS_AND_CLASSES):
        folder.note(f"{base}{PROMPTS_AND_CLASSES} is missing ({folder.describe()}); point to DreamBench's folder")
        return []
    said = read_prompts_and_classes(folder, base + PROMPTS_AND_CLASSES)
    if said is None:
        return []
    subjects = read_listed(folder, base, said.classes)
    return [(subject, scenes_of(said, subject.subject_class)) for subject in subjects]


def read_listed(folder: BenchmarkFolder, base: str, classes: dict[str, str]) -> list[Subject]:
    """The subjects of a table of classes, each a folder of pictures in `base` ("" or "dataset/").

    Subjects without a picture, and folders without a class, are noted.
    """
    for name in folder.folders(base.rstrip("/")):
        if name not in classes:
            folder.note(f"{base}{name}: the class of this subject is unknown; {PROMPTS_AND_CLASSES} does not list it")
    return [folder.subject(name, word, base + name) for name, word in classes.items()]


def scenes_of(said: PromptsAndClasses, subject_class: str) -> tuple[Scene, ...]:
    """The prompts of a class: those of live subjects for cats and dogs, if there are such.

    Prompts that both lists have share their ids, so that a breakdown by prompt takes them together.
    """
    lists = said.lists
    live = [title for title in lists if title.startswith("Live")] if subject_class in LIVE_CLASSES else []
    title = next(iter(live or [title for title in lists if not title.startswith("Live")]), "")
    distinct = list(dict.fromkeys(template for templates in lists.values() for template in templates))
    ids = {scene.template: scene.prompt_id for scene in number_prompts(distinct)}
    return tuple(Scene(ids[template], template) for template in dict.fromkeys(lists.get(title, [])))


def read_people(
    folder: BenchmarkFolder, config: BenchmarkConfig, locations: Locations | None, words: tuple[str, ...] = ()
) -> Contents:
    """A folder per identity, `prompts.txt`, and `classes.json` with a class word (man, woman, person) by identity;
    without it all are of class person. `words`: the class words that are allowed; none: any.
    """
    classes = folder.words(CLASSES) if folder.has(CLASSES) else None
    subjects: list[Subject] = []
    for name in folder.folders():
        word = "person" if classes is None else classes.get(name, "")
        if not word:
            folder.note(f"{name}: the class of this identity is unknown; {CLASSES} does not list it")
        elif words and word not in words:
            folder.note(f"{name}: the class {word!r} in {CLASSES} is none of {', '.join(words)}")
        subjects.append(folder.subject(name, word, name))
    _note_unlisted(folder, classes or {}, subjects)
    return _with_prompts(folder, subjects, config, locations)


def read_own(folder: BenchmarkFolder, config: BenchmarkConfig, locations: Locations | None) -> Contents:
    """Subjects as folders of pictures or as single pictures, `prompts.txt`, and `classes.json` with class words by
    subject; those that it does not list are called as their folder or file: `red_mug2` is a red mug.
    """
    classes = folder.words(CLASSES) if folder.has(CLASSES) else {}
    subjects = [folder.subject(name, _class_of(folder, name, classes), name) for name in folder.folders()]
    for picture in folder.pictures():
        name = picture.rpartition(".")[0]
        if any(subject.subject_id == name for subject in subjects):
            folder.note(f"{picture}: there is another subject {name!r}; rename one of them")
        subjects.append(Subject(name, _class_of(folder, name, classes), (picture,)))
    _note_unlisted(folder, classes, subjects)
    return _with_prompts(folder, sorted(subjects, key=lambda subject: subject.subject_id), config, locations)


def _class_of(folder: BenchmarkFolder, name: str, classes: dict[str, str]) -> str:
    word = classes.get(name, "").strip() or " ".join(re.sub(r"[\W_]*[0-9]*$", "", name).replace("_", " ").split())
    if not word:
        folder.note(f"{name}: the name says no class; give it in {CLASSES}")
    return word


def _note_unlisted(folder: BenchmarkFolder, classes: dict[str, str], subjects: list[Subject]) -> None:
    names = {subject.subject_id for subject in subjects}
    for name in classes:
        if name not in names:
            folder.note(f"{CLASSES} lists {name!r}, which has no folder")
    if not subjects:
        folder.note(f"there are no subjects: {folder.describe()}")


def _with_prompts(
    folder: BenchmarkFolder, subjects: list[Subject], config: BenchmarkConfig, locations: Locations | None
) -> Contents:
    scenes = _own_prompts(folder, config.prompts_uri, locations)
    return [(subject, scenes) for subject in subjects]


def _own_prompts(folder: BenchmarkFolder, prompts_uri: str, locations: Locations | None) -> tuple[Scene, ...]:
    if not prompts_uri:
        return read_prompts(folder, PROMPTS)
    place: Location = locate(prompts_uri)
    other = BenchmarkFolder(place.parent.uri, locations, "prompts_uri")
    scenes = read_prompts(other, place.path.rpartition("/")[2])
    for problem in other.problems:
        folder.note(f"prompts_uri {place.parent.uri}: {problem}")
    return scenes
