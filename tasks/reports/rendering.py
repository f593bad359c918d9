"""What every page shares: templates, style, and a policy under which nothing else can load or run."""

import base64
import functools
import hashlib
import json
from importlib import metadata, resources
from typing import Any

import jinja2
from markupsafe import Markup

from tasks.reports.wording import format_number, plural

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='4' fill='%234f6fd6'/%3E"
    "%3Cpath d='M4 11l3-4 2 2 1-1 2 3z' fill='%23fff'/%3E%3C/svg%3E"
)


@functools.cache
def environment() -> jinja2.Environment:
    """The templates with the filters that they use, each compiled once in a process; a name that is not given is an
    error.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tasks.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=format_number, plural=plural, percent=_percent)
    return made


def render(template: str, *, style: str, script: str, beside: bool = True, **values: Any) -> str:
    """A page of its template: with its style, its script, a policy that lets nothing else run (`beside` as in
    `content_policy`), and what every page says of itself.
    """
    page = environment().get_template(template)
    return page.render(
        policy=content_policy(style, script, beside=beside),
        style=Markup(style),  # noqa: S704 - of our own files
        script=Markup(script),  # noqa: S704
        icon=ICON,
        version=metadata.version("ezigen-pipeline"),
        **values,
    )


def _percent(share: float, digits: int = 3) -> str:
    return f"{share * 100:.{digits}f}%"


def template_text(*names: str) -> str:
    """Style sheets or scripts as they are, one after the other."""
    folder = resources.files("tasks.reports").joinpath("templates")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def content_policy(style: str, script: str, *, beside: bool = True) -> str:
    """Nothing runs but this script, nothing loads but this page's pictures and, if `beside`, those in the folder beside
    it.
    """
    pictures = "data: 'self' file:" if beside else "data:"
    return (
        f"default-src 'none'; script-src '{_source_hash(script)}'; style-src '{_source_hash(style)}'; "
        f"img-src {pictures}; base-uri 'none'; form-action 'none'"
    )


def embed_json(value: Any) -> Markup:
    """JSON that cannot end or change the script element it stands in, whatever its texts say."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - nothing in it can end its element


def _source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
