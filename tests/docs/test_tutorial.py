"""What the tutorial says runs as it stands."""

import re
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_block_runs_in_order(tmp_path, monkeypatch, capsys):
    text = (DOCS / "tutorial.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 9
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        try:
            exec(compile(block, f"block {number + 1} of tutorial.md", "exec"), names)
        except Exception as error:
            error.add_note(block)
            raise
    for name in ("bag", "how", "preview", "between", "pipeline"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1]
    printed = capsys.readouterr().out
    assert "image_undecodable" in printed.lower()
    assert printed.count("image ") >= 3


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_links_of_the_documentation_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
