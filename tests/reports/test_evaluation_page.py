"""The page of an evaluation: it says what the tables say, draws it where it belongs, and works in a real browser."""

import base64
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tasks.evaluation.paper import DREAMBENCH, MODES, Claim, PaperTable, Variant
from tasks.evaluation.tables import measure_table
from tasks.reports import evaluation_page
from tasks.reports.evaluation_page import MAX_LINES, MAX_MISSING, MissingImage, render_evaluation
from tests.reports.browser import CHROMIUM, Browser
from tests.reports.evaluation import make_benchmark, make_images, make_page

HOSTILE = "</script><script>alert(1)</script><b onclick=x>&quot;\"'"
MANY = PaperTable(
    "many",
    "9",
    "Many lines",
    "generation",
    ("clip_t", "clip_i", "dino"),
    tuple(Variant(f"v{n}", f"line {n}") for n in range(13)),
)


class Reader(HTMLParser):
    """Tags, the text outside of scripts and styles, and the elements of every chart line by its label."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._within = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def sources(self) -> list[str | None]:
        """Of every picture but the one that waits to be enlarged."""
        return [a["src"] for tag, a in self.tags if tag == "img" and a.get("id") != "enlarged-picture"]

    def line(self, label: str) -> list[tuple[str, dict[str, str | None]]]:
        """What is drawn in the first line with this label, up to the next line."""
        start = next(n for n, (_, a) in enumerate(self.tags) if (a.get("aria-label") or "").startswith(f"{label}: "))
        end = next(n for n in range(start, len(self.tags)) if self.tags[n][0] == "p")
        return self.tags[start:end]


def read(page) -> Reader:
    return Reader(render_evaluation(page))


def drawn(tags, css: str, attribute: str) -> list[float]:
    """Places of the elements of a class, in percent."""
    return [float((a[attribute] or "").rstrip("%")) for _, a in tags if a.get("class") == css]


@pytest.fixture(scope="module")
def modes():
    return make_page(make_benchmark(12), missing=2)


def test_the_head_says_what_was_evaluated_on_what_and_what_is_missing(modes):
    benchmark = replace(modes.benchmarks[0], subset="12 of 30 subjects")
    text = read(replace(modes, benchmarks=(benchmark,))).text
    assert "Evaluation on dreambench toys@v3" in text
    assert "190 of 192 images are measured, 2 are missing." in text
    assert "dreambench (12 of 30 subjects): 48 cases, each with an image in every line." in text
    assert "Model mini" in text
    assert "Adapter 0123456789ab dreambench 0b0b0b0b0b0b" in text
    assert "Made 24 Nov 2026, 04:00 UTC to 24 Nov 2026, 09:00 UTC" in text
    assert "of which a part was made here" in text
    assert render_evaluation(modes) == render_evaluation(modes)


def test_several_benchmarks_are_told_apart(modes):
    editing = replace(make_benchmark(3), name="dreamedit", digest="0c" * 16)
    text = read(replace(modes, benchmarks=(*modes.benchmarks, editing))).text
    assert "Evaluation on dreambench and dreamedit" in text
    assert "dreambench: 48 cases, each with an image in every line. dreamedit: 12 cases, each" in text
    assert "60 cases" in text.replace("cases 60", "60 cases")
    assert "dreamedit 0c0c0c0c0c0c" in text


def test_published_figures_of_another_scale_are_said_to_be(modes):
    assert "They are on another scale" in read(modes).text
    assert "another scale" not in read(replace(modes, own_scale=False)).text


def test_a_line_has_its_mean_its_interval_and_what_was_published(modes):
    text = read(modes).text
    for row in modes.tables[0].measured.rows:
        found = row.means["dino"]
        assert f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] published {row.published['dino']:.3f}" in text
    assert "text only 2 images missing" in text


def test_claims_have_a_verdict_in_words_and_a_sign():
    benchmark = make_benchmark(12)
    claims = (Claim("dino", "full_injection", "text_only"), Claim("dino", "text_only", "iterative"))
    same = Claim("clip_i", "text_only", "iterative")
    page = make_page(benchmark, replace(MODES, claims=(*claims, same)))
    text = read(page).text
    assert "Of 3 claims of the paper 1 agrees, 1 disagrees, 1 is undecided." in text
    assert re.search(r"✓ agrees DINO, full injection above text only: \+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\]", text)
    assert "✗ disagrees DINO, text only above decoupled, loops until they settle: -0." in text
    assert "? undecided CLIP-I, text only above" in text


def test_marks_lie_where_the_axis_says(modes):
    reader = read(modes)
    found = modes.tables[0].measured.rows[1].means["dino"]
    charts = [n for n, (_, a) in enumerate(reader.tags) if a.get("id") == "chart-modes-dino"]
    dino = Reader("")
    dino.tags = reader.tags[charts[0] :]
    line = dino.line("full injection")
    (published,) = [float((a["x"] or "").rstrip("%")) for tag, a in line if tag == "svg" and "x" in a]
    # Two known places make the scale: that of the published value, and that of the mean.
    (mean,) = drawn(line, "dot", "cx")
    low, high = drawn(line, "whisker", "x1")[0], drawn(line, "whisker", "x2")[0]
    per_unit = (mean - low) / (found.mean - found.low)
    assert (high - mean) / per_unit == pytest.approx(found.high - found.mean, abs=1e-3)
    assert (published - mean) / per_unit == pytest.approx(0.762 - found.mean, abs=1e-3)
    assert 0 <= min(low, published) < max(high, published) <= 100
    other = dino.line("text only")
    assert (drawn(other, "dot", "cx")[0] - mean) / per_unit == pytest.approx(
        modes.tables[0].measured.rows[0].means["dino"].mean - found.mean, abs=1e-3
    )


def test_one_subject_has_no_interval():
    page = make_page(make_benchmark(1))
    reader = read(page)
    assert "one subject" in reader.text
    assert "inf" not in reader.text
    assert "6 are undecided" in reader.text
    assert not drawn(reader.line("full injection"), "whisker", "x1")
    assert len(drawn(reader.line("full injection"), "dot", "cx")) == 1


def test_an_evaluation_without_any_image_has_a_page():
    benchmark = make_benchmark(2)
    page = make_page(benchmark, closer=None)
    empty = replace(page.tables[0], measured=measure_table(MODES, [], 8), sheet=None)
    missing = tuple(MissingImage("text only", f"s/{n}", "not made") for n in range(32))
    reader = read(replace(page, tables=(empty,), missing=missing, made=None))
    assert "No image is measured yet." in reader.text
    assert "No line of this table is measured yet." in reader.text
    assert "32 Not made What to do Run the evaluation again." in reader.text
    assert not {"closer", "worst"} & {a.get("id") for _, a in reader.tags}


def test_other_methods_are_lines_without_a_measurement():
    reader = read(make_page(make_benchmark(4), DREAMBENCH))
    line = reader.line("Textual Inversion")
    assert not drawn(line, "dot", "cx")
    assert line[0][1]["aria-label"] == "Textual Inversion: published 0.261"
    # Of a measure that one line alone has, the table says all.
    assert "chart-dreambench-clip_i" not in {a.get("id") for _, a in reader.tags}


def test_breakdowns_begin_with_the_worst_and_end_somewhere():
    benchmark = make_benchmark(MAX_LINES + 20)
    reader = read(make_page(benchmark))
    assert f"The worst {MAX_LINES} of {MAX_LINES + 20} subjects." in reader.text
    options = [a["value"] for tag, a in reader.tags if tag == "option"]
    assert options == ["dino", "clip_t", "clip_i"]  # and not what an image cost
    scores = {}
    for image in make_images(benchmark):
        if image.variant == "iterative":
            scores.setdefault(image.subject_id, []).append(image.scores["dino"])
    worst = sorted(scores, key=lambda name: sum(scores[name]))
    labels = [(a.get("aria-label") or "").partition(":")[0] for _, a in reader.tags]
    shown = [label for label in labels if label.startswith("subject")][:MAX_LINES]
    assert shown == worst[:MAX_LINES]


def test_a_prompt_is_said_without_the_words_of_its_subjects(modes):
    text = read(modes).text
    assert "p00 a … in the jungle" in text
    one_class = tuple(case for case in modes.benchmarks[0].cases if case.subject_class == "backpack")
    same = replace(modes, benchmarks=(replace(modes.benchmarks[0], cases=one_class),))
    assert "p00 a backpack in the jungle" in read(same).text


def test_worst_cases_have_pictures_prompt_and_scores(modes):
    reader = read(modes)
    worst = modes.closer.worst["clip_t"][0]
    said = f"{worst.case.prompt} {worst.case.case_id} CLIP-T {worst.image.scores['clip_t']:.3f}"
    assert said in reader.text
    made = [a["src"] for tag, a in reader.tags if tag == "img" and (a.get("alt") or "").endswith(", made")]
    assert made == [one.made for cases in modes.closer.worst.values() for one in cases]


def test_a_picture_that_is_not_readable_leaves_a_place(modes):
    closer = replace(modes.closer, worst={"dino": (replace(modes.closer.worst["dino"][0], made=""),)})
    reader = read(replace(modes, closer=closer))
    assert reader.text.count("not readable") == 1
    assert "" not in reader.sources


def test_missing_images_are_counted_by_reason_and_listed_up_to_a_number(modes):
    many = tuple(MissingImage("text only", f"case {n}", f"timed_out: case {n} took 99 s.") for n in range(150))
    text = read(replace(modes, missing=(*many, MissingImage("1 loop", "x", "strange")))).text
    assert "150 The item took too long What to do Raise the time limit" in text
    assert "1 strange" in text
    assert f"The first {MAX_MISSING} of them" in text
    assert f"case {MAX_MISSING - 1} took" in text
    assert f"case {MAX_MISSING} took" not in text


def test_sheets_that_no_longer_fit_are_named(modes, monkeypatch):
    monkeypatch.setattr(evaluation_page, "MAX_SHEETS_BYTES", len(modes.tables[0].sheet) + 10)
    other = replace(
        modes.tables[0], measured=measure_table(replace(MODES, name="other"), make_images(modes.benchmarks[0]), 48)
    )
    reader = read(replace(modes, tables=(modes.tables[0], other)))
    uri = "data:image/jpeg;base64," + base64.b64encode(modes.tables[0].sheet).decode()
    assert reader.sources.count(uri) == 1
    assert "too large for this page: sheets/other.jpg" in reader.text


def test_hostile_names_stay_text(modes):
    page = make_page(make_benchmark(3, subject=HOSTILE), name=HOSTILE, missing=1)
    page = replace(page, benchmarks=(replace(page.benchmarks[0], subset=HOSTILE, name=HOSTILE),), model=HOSTILE)
    cases = [replace(case, prompt=case.prompt + HOSTILE) for case in page.benchmarks[0].cases]
    page = replace(page, benchmarks=(replace(page.benchmarks[0], cases=tuple(cases)),))
    reader = read(page)
    assert {tag for tag, _ in reader.tags} == {tag for tag, _ in read(modes).tags}
    assert Counter(tag for tag, _ in reader.tags)["script"] == 1
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert HOSTILE in reader.text


# ---- in a browser


SHOWN = "[...document.querySelectorAll('[data-measure]')].filter(p => !p.hidden).map(p => p.dataset.measure)"
DRAWN_WITHIN = """[...document.querySelectorAll('.intervals .dot, .intervals .whisker')]
  .filter(m => m.getClientRects().length).every(m => {
    const a = m.getBoundingClientRect(), b = m.closest('.line-plot').getBoundingClientRect();
    return a.left >= b.left - 6 && a.right <= b.right + 6 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1; })
  && [...document.querySelectorAll('.intervals .line-plot')].filter(p => p.getClientRects().length).every(p => {
    const a = p.getBoundingClientRect();
    const b = p.closest('.intervals').querySelector('.line-axis .line-plot').getBoundingClientRect();
    return a.height > 10 && Math.abs(a.left - b.left) < 0.5 && Math.abs(a.right - b.right) < 0.5; })"""
INK = "(s => getComputedStyle(document.querySelector(s)))"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_the_page_in_a_browser(tmp_path: Path, modes):
    benchmark = make_benchmark(12, subject=HOSTILE)
    page = make_page(benchmark, missing=3)
    path = tmp_path / "evaluation.html"
    path.write_text(render_evaluation(replace(page, tables=(*page.tables, *make_page(benchmark, MANY).tables))))
    with Browser(tmp_path / "profile") as browser:
        browser.open(path)
        assert browser.requests == [path.as_uri()]
        assert browser.run(SHOWN) == ["dino", "dino"]
        choose = (
            "const s = document.querySelector('#measure'); s.value = 'clip_t'; s.dispatchEvent(new Event('change'))"
        )
        browser.run(f"(() => {{ {choose} }})()")
        assert browser.run(SHOWN) == ["clip_t", "clip_t"]
        browser.wait_for(DRAWN_WITHIN)
        # The sheet opens in full size, and the keyboard comes back to where it was.
        browser.run("document.querySelector('.enlarge').focus()")
        browser.press("Enter")
        browser.wait_for("document.querySelector('#enlarged').open")
        assert browser.run("document.querySelector('#enlarged-picture').naturalWidth") == 760
        browser.press("Escape")
        browser.wait_for("!document.querySelector('#enlarged').open")
        assert browser.run("document.activeElement.className") == "enlarge"
        light = browser.run(f"{INK}('body').backgroundColor")
        assert browser.errors == []

        browser.open(path, dark=True)
        assert browser.run(f"{INK}('body').backgroundColor") != light
        assert browser.run(f"{INK}('.published-mark').stroke === {INK}('body').color")
        assert browser.errors == []

        browser.open(path, width=390, height=800, phone=True)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        browser.wait_for(DRAWN_WITHIN)
        assert browser.errors == []
