"""Files of prompts: DreamBench's, which looks like Python and is only read, and a plain one with a prompt per line."""

import re
from dataclasses import dataclass, field

from tasks.evaluation.folder import BenchmarkFolder, Scene

CLASS_FIELD = "{subject_class}"

# A quoted text with {0} and {1} that is formatted with the two tokens.
_PROMPT = re.compile(r"""(['"])(?P<text>.*)\1\s*\.format\(\s*unique_token\s*,\s*class_token\s*\)\s*,?""")
_CLASS_ROW = re.compile(r"(?P<subject>[^,]+),(?P<subject_class>[^,]+)")
_HEADING = re.compile(r"(?P<title>.+) Prompts")
_NOTHING_SAID = ("", "Classes", "Prompts", "subject_name,class", "prompt_list = [", "]")


@dataclass
class PromptsAndClasses:
    """What `prompts_and_classes.txt` says: class by subject, and lists of templates by their heading."""

    classes: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)


def read_prompts_and_classes(folder: BenchmarkFolder, name: str) -> PromptsAndClasses | None:
    """DreamBench's table of classes and lists of prompts. What is wrong with them is noted; None if there is no file.

    The prompts are Python expressions. They are matched, never evaluated; `{0}`, the unique token of methods that are
    trained per subject, is left out: "a dog in the jungle".
    """
    text = folder.text(name)
    if text is None:
        return None
    found = PromptsAndClasses()
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if line not in _NOTHING_SAID and not _add_line(found, line):
            folder.note(f"{name}, line {number} is neither a class, a heading nor a prompt: {line[:80]!r}")
    if not found.classes:
        folder.note(f"{name} has no table of classes (subject_name,class)")
    if not any(found.lists.values()):
        folder.note(f"{name} has no prompts")
    return found


def _add_line(found: PromptsAndClasses, line: str) -> bool:
    """Whether the line was understood."""
    if heading := _HEADING.fullmatch(line):
        found.lists[heading["title"]] = []
    elif found.lists:
        prompt = _PROMPT.fullmatch(line)
        template = _to_template(prompt["text"]) if prompt else ""
        if not template:
            return False
        found.lists[next(reversed(found.lists))].append(template)
    elif row := _CLASS_ROW.fullmatch(line):
        found.classes[row["subject"].strip()] = row["subject_class"].strip()
    else:
        return False
    return True


def _to_template(text: str) -> str:
    template = " ".join(text.replace("{0}", " ").replace("{1}", CLASS_FIELD).split())
    return "" if wrong_template(template) else template


def read_prompts(folder: BenchmarkFolder, name: str) -> tuple[Scene, ...]:
    """A prompt per line with `{subject_class}`; blank lines and those that begin with # are left out.

    What is wrong with them is noted.
    """
    text = folder.text(name)
    if text is None:
        return ()
    templates = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = " ".join(raw.split())
        if not line or line.startswith("#"):
            continue
        if wrong := wrong_template(line):
            folder.note(f"{name}, line {number} {wrong}: {line[:80]!r}")
        templates.append(line)
    if not templates:
        folder.note(f"{name} has no prompts; write one per line, such as: a photo of a {CLASS_FIELD} on a beach")
    return number_prompts(templates)


def number_prompts(templates: list[str]) -> tuple[Scene, ...]:
    """The prompts as p00, p01, ..."""
    return tuple(Scene(f"p{number:02d}", template) for number, template in enumerate(templates))


def wrong_template(template: str) -> str:
    """What is wrong with a prompt; "" for nothing."""
    if CLASS_FIELD not in template:
        return f"does not name the subject; write {CLASS_FIELD} where its class goes"
    rest = template.replace(CLASS_FIELD, "")
    return f"has braces that are not {CLASS_FIELD}" if "{" in rest or "}" in rest else ""
