"""A whole study in a real browser: answered by keyboard and by pointer, gone back, resumed, exported, evaluated."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from tasks.studies import StudyRequest, parse_questions, read_results, write_study
from tests.reports.browser import CHROMIUM, Browser
from tests.reports.test_page import HOSTILE
from tests.studies.sets import write_run, write_subjects

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")

METHODS = ("secretmethod", "otherbaseline", "thirdrival")
PLACE = "document.querySelector('#place').textContent"
CASE = "currentCase().name"
NO_STORAGE = (
    "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def study(tmp_path) -> Path:
    write_subjects(tmp_path, range(4))
    for method in METHODS:
        write_run(tmp_path / method, method, range(4), shop=tmp_path)
    sets = {method: str(tmp_path / method) for method in METHODS}
    write_study(str(tmp_path / "study.html"), StudyRequest(sets, parse_questions(["identity", "quality"])))
    return tmp_path / "study.html"


def key_of(study: Path) -> dict:
    return json.loads(study.with_suffix(".key.json").read_text("utf-8"))


def click(browser, selector):
    browser.run(f"document.querySelector({selector!r}).click()")


def begin(browser, name):
    browser.run(f"document.querySelector('#rater').value = {name!r}")
    click(browser, "#begin button")
    browser.wait_for("!document.querySelector('#case').hidden")


def exported(browser, folder: Path, selector: str = "#export") -> Path:
    folder.mkdir()
    browser.downloads_to(folder)
    click(browser, selector)
    deadline = time.monotonic() + 30
    while not (files := list(folder.glob("*.json"))):
        assert time.monotonic() < deadline, "no file was saved"
        time.sleep(0.03)
    return files[0]


def pick(browser, key, wanted: str) -> str:
    """The key that chooses a method's image of the case that is shown."""
    labels = {label: method for case in key["cases"] for label, method in case["labels"].items()}
    shown = browser.run("labelsOf(currentCase())")
    return str([labels[label] for label in shown].index(wanted) + 1)


def test_a_session_by_keyboard(browser, study, tmp_path):
    key = key_of(study)
    browser.open(study)
    assert browser.run("document.querySelector('#case').hidden")
    begin(browser, "Ann Ö.")
    assert browser.run(PLACE) == "Case 1 of 4"
    assert browser.run("document.querySelectorAll('#choices img, #subjects img').length") == 4
    browser.press("Enter")  # not answered yet: nothing happens
    assert browser.run(PLACE) == "Case 1 of 4"
    for number in range(4):
        browser.press(pick(browser, key, METHODS[0]))
        browser.press("0" if number == 3 else pick(browser, key, METHODS[1]))
        browser.press("Enter")
    assert browser.run("document.querySelector('#end-title').textContent") == "Thank you"
    file = exported(browser, tmp_path / "saved")
    assert file.name == f"answers-{key['study'][:8]}-Ann-O.json"
    assert browser.errors == []
    assert browser.requests == [study.as_uri()]

    answers = json.loads(file.read_text("utf-8"))
    assert (answers["rater"], answers["study"], len(answers["answers"])) == ("Ann Ö.", key["study"], 8)
    assert all(answer["at"].startswith("20") and answer["seconds"] >= 0 for answer in answers["answers"])
    results = read_results(str(study.with_suffix(".key.json")), [str(file)])
    shares = {(share.question, share.method): share.interval.mean for share in results.shares}
    assert shares["identity", METHODS[0]] == 1
    assert (shares["quality", METHODS[1]], shares["quality", None], shares["quality", METHODS[2]]) == (0.75, 0.25, 0)


def test_back_and_changed_by_pointer(browser, study):
    browser.open(study)
    begin(browser, "Ben")
    browser.press("1")
    browser.press("2")
    first = browser.run(CASE)
    click(browser, "#next")
    assert browser.run(CASE) != first
    click(browser, "#back")
    assert browser.run(CASE) == first
    pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(button => button.textContent)"
    assert browser.run(pressed) == ["A", "B"]
    click(browser, ".ask:nth-child(2) .answers button:last-child")
    assert browser.run(pressed) == ["A", "No difference"]
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    click(browser, ".picture-choice:nth-child(3)")  # answers the question that is marked
    assert browser.run("Object.keys(session.answers).length") == 3
    assert browser.run("answerOf(currentCase(), study.questions[1]).choice") == browser.run(
        "labelsOf(currentCase())[2]"
    )
    assert browser.run("document.querySelector('.ask:first-child').classList.contains('is-active')")
    assert browser.errors == []


def test_what_was_answered_is_there_again(browser, study, tmp_path):
    browser.open(study)
    begin(browser, "Cem")
    for key in ("1", "1", "Enter", "0"):
        browser.press(key)
    shown, order = browser.run(CASE), browser.run("session.order")
    browser.open(study)
    assert browser.run("document.querySelector('#resumes button').textContent") == "Cem (3 of 8)"
    click(browser, "#resumes button")
    assert (browser.run(CASE), browser.run("session.order")) == (shown, order)
    click(browser, "#next")
    click(browser, "#next")
    click(browser, "#next")
    assert "5 of 8 answers are missing" in browser.run("document.querySelector('#end-said').textContent")
    partial = exported(browser, tmp_path / "saved")
    results = read_results(str(study.with_suffix(".key.json")), [str(partial)])
    assert (results.num_missing, results.num_expected) == (5, 8)
    click(browser, "#first-missing")
    assert browser.run(CASE) == shown
    # A second rater starts from nothing, and the first one's answers stay.
    browser.open(study)
    begin(browser, "Dora")
    assert browser.run("numAnswers()") == 0
    browser.open(study)
    assert browser.run("document.querySelectorAll('#resumes button').length") == 2


def test_order_differs_from_rater_to_rater_and_case_to_case(browser, study):
    browser.open(study)
    orders = browser.run(
        """Array.from({ length: 90 }, (_, rater) => { session.rater = `r${rater}`;
        return study.cases.map((shown) => labelsOf(shown).map((label) => shown.labels.indexOf(label)).join('')); })"""
    )
    assert len({tuple(order) for order in orders}) > 60  # of 1,296 that are possible
    # Of 360 draws every image is first in about 120; the standard deviation is 9.
    counts = Counter(order[0] for rater in orders for order in rater)
    assert set(counts) == {"0", "1", "2"}
    assert all(60 < count < 180 for count in counts.values())
    # What one rater saw is shuffled from case to case, too.
    assert sum(len(set(order)) > 1 for order in orders) > 60


def test_without_storage_an_exported_file_goes_on(browser, study, tmp_path):
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=NO_STORAGE)["identifier"]
    try:
        browser.open(study)
        begin(browser, "Eva")
        browser.press("1")
        assert not browser.run("document.querySelector('#not-kept').hidden")
        file = exported(browser, tmp_path / "saved", "#bar-export")
        browser.open(study)
        assert browser.run("document.querySelectorAll('#resumes button').length") == 0
        other = tmp_path / "other.json"
        other.write_text(json.dumps({**json.loads(file.read_text()), "study": "0" * 32}))
        browser.choose_file("#continue", other)
        browser.wait_for("document.querySelector('#continue-said').textContent.includes('another study')")
        browser.choose_file("#continue", file)
        browser.wait_for("!document.querySelector('#case').hidden")
        assert (browser.run("session.rater"), browser.run("numAnswers()")) == ("Eva", 1)
        assert browser.errors == []
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_hostile_texts_run_nothing(browser, tmp_path):
    write_subjects(tmp_path, range(1))
    for method in METHODS[:2]:
        write_run(tmp_path / method, method, range(1), shop=tmp_path, prompt=HOSTILE)
    questions = parse_questions([f"{HOSTILE[:30]}={HOSTILE}"])
    sets = {method: str(tmp_path / method) for method in METHODS[:2]}
    write_study(str(tmp_path / "study.html"), StudyRequest(sets, questions))
    browser.open(tmp_path / "study.html")
    browser.run("window.alert = () => { window.attacked = true; }")
    begin(browser, HOSTILE[:40])
    assert browser.run("document.querySelector('#prompt').textContent") == HOSTILE
    browser.press("1")
    browser.press("Enter")
    browser.open(tmp_path / "study.html")
    assert browser.run("document.querySelectorAll('img[src=x], [onerror]').length") == 0
    assert browser.run("window.attacked") is None
    assert browser.errors == []


@pytest.mark.parametrize(("width", "dark"), [(320, False), (390, True), (1440, False)])
def test_no_width_scrolls_sideways(browser, study, width, dark):
    browser.open(study, width=width, height=844, phone=width < 500, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    begin(browser, "x" * 80)
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.run("showEnd()")
    assert browser.run("document.documentElement.scrollWidth") <= width
