"""What raters are asked about each case."""

from dataclasses import dataclass
from typing import Literal

from ezigen.config import ConfigurationError


@dataclass(frozen=True)
class Question:
    """One question. `needs` says what a case must show for it."""

    name: str
    text: str
    needs: Literal["prompt", "subject", ""] = ""


QUESTIONS = (
    Question("flexibility", "Which image follows the text best?", "prompt"),
    Question("identity", "In which image is the subject most like its picture?", "subject"),
    Question("quality", "Which image is the best overall?"),
)
"""Those of the paper's preference study."""

_KNOWN = {question.name: question for question in QUESTIONS}
_MAX_NAME_CHARS, _MAX_TEXT_CHARS = 40, 200


def parse_questions(texts: list[str]) -> tuple[Question, ...]:
    """Questions by name, or of one's own as NAME=TEXT; those of the paper if none is given.

    Raises ConfigurationError for an unknown name, a name given twice, or an endless text.
    """
    questions = tuple(_parse(text) for text in texts) or QUESTIONS
    names = [question.name for question in questions]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigurationError(f"--question {', '.join(sorted(twice))} is given twice; name each question once.")
    return questions


def _parse(given: str) -> Question:
    name, mark, text = (part.strip() for part in given.partition("="))
    if not mark and name in _KNOWN:
        return _KNOWN[name]
    if not mark:
        known = ", ".join(_KNOWN)
        raise ConfigurationError(f"--question {given!r} is unknown; use {known}, or NAME=TEXT for one of your own.")
    if not 0 < len(name) <= _MAX_NAME_CHARS or not 0 < len(text) <= _MAX_TEXT_CHARS:
        raise ConfigurationError(
            f"--question {given[:80]!r}: write NAME=TEXT with a name of at most {_MAX_NAME_CHARS} and a text of at "
            f"most {_MAX_TEXT_CHARS} characters."
        )
    return Question(name, text)
