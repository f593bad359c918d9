"""The page of a study: complete in itself, and silent about who made which image."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.reports.rendering import embed_json, render, template_text
from tasks.studies.questions import Question

_SCRIPTS = ("elements.js", "keeping.js", "study.js")
_STYLES = ("report.css", "work.css", "study.css")


@dataclass(frozen=True)
class PageCase:
    """A case under its opaque name. `images`: label -> picture as a data URI, in the order of the labels."""

    name: str
    prompt: str
    subjects: tuple[str, ...]
    images: Mapping[str, str]


def render_study(cases: Sequence[PageCase], questions: Sequence[Question]) -> tuple[bytes, str]:
    """The page, and the digest that names the study: of everything that raters see."""
    data = {
        "questions": [{"name": question.name, "text": question.text} for question in questions],
        "cases": [
            {"name": case.name, "prompt": case.prompt, "subjects": len(case.subjects), "labels": list(case.images)}
            for case in cases
        ],
    }
    pictures = {f"subject-{case.name}-{place}": uri for case in cases for place, uri in enumerate(case.subjects)}
    pictures |= {f"image-{label}": uri for case in cases for label, uri in case.images.items()}
    digest = hashlib.sha256(json.dumps([data, pictures], sort_keys=True).encode()).hexdigest()[:32]
    page = render(
        "study.html.j2",
        style=template_text(*_STYLES),
        script=template_text(*_SCRIPTS),
        beside=False,
        num_cases=len(cases),
        num_questions=len(questions),
        questions=[question.text for question in questions],
        data=embed_json({"study": digest, **data}),
        pictures=pictures,
    )
    return page.encode(), digest
