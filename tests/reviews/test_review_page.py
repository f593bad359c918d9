"""The review of a run in a real browser, exported and applied; what the page holds and leaves out."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ezigen.config import ConfigurationError
from tasks.reviews import ReviewRequest, Reviews, apply_decisions, write_review
from tasks.storage import RunOutput
from tests.reports.browser import CHROMIUM, Browser
from tests.reports.rows import make_row
from tests.reports.test_page import HOSTILE, Page
from tests.reviews.test_decisions import ezigen, write_decisions
from tests.studies.sets import write_run, write_subjects

NUM_ITEMS = 30
IDS = "[...document.querySelectorAll('.card .name')].map((name) => name.textContent)"
CURRENT = "currentItem().id"
COUNTS = "document.querySelector('#counts .long').textContent"

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def output(tmp_path) -> RunOutput:
    write_subjects(tmp_path, range(NUM_ITEMS))
    return write_run(tmp_path / "out", "secretmethod", range(NUM_ITEMS), shop=tmp_path)


def worst_first(name: str = "dino", num: int = NUM_ITEMS) -> list[str]:
    return [row.item_id for row in sorted(map(make_row, range(num)), key=lambda row: row.scores[name])]


def set_field(browser, name, value, event="change"):
    browser.run(
        f"(() => {{ const field = document.querySelector('#{name}'); field.value = {value!r}; "
        f"field.dispatchEvent(new Event({event!r}, {{bubbles: true}})); }})()"
    )


def click(browser, selector):
    browser.run(f"document.querySelector({selector!r}).click()")


def exported(browser, folder: Path) -> Path:
    folder.mkdir()
    browser.downloads_to(folder)
    click(browser, "#export")
    deadline = time.monotonic() + 30
    # Chromium makes an empty file first, and writes beside it.
    while not (files := [file for file in folder.glob("*.json") if file.stat().st_size]):
        assert time.monotonic() < deadline, "no file was saved"
        time.sleep(0.03)
    return files[0]


def states(output: RunOutput) -> dict[str, str]:
    reviews = Reviews.of(output)
    return {row.item_id: reviews.state(row.item_key, row.image_sha256) for row in output.read_result_rows()}


# ---- what the page holds


def test_the_worst_come_first_and_filters_choose(output):
    review = write_review(output, ReviewRequest(max_items=5))
    page = Page(Path(review.page_uri).read_text("utf-8"))
    assert review.page_uri == output.uri("review.html")
    assert (review.num_items, review.num_selected) == (5, NUM_ITEMS)
    assert [item["id"] for item in page.data["items"]] == worst_first()[:5]
    assert all(page.raw[f"subject-{number}-0"].startswith("data:image/webp;") for number in range(5))
    below = write_review(output, ReviewRequest(below={"dino": 0.6, "clip_t": 0.29, "nothing": 1.0}))
    scores = [make_row(index).scores for index in range(NUM_ITEMS)]
    assert 0 < below.num_items == sum(one["dino"] < 0.6 or one["clip_t"] < 0.29 for one in scores) < NUM_ITEMS
    with pytest.raises(ConfigurationError, match="no image fits"):
        write_review(output, ReviewRequest(below={"dino": 0.0}))


def test_earlier_decisions_stand_in_the_page(output):
    apply_decisions(output, write_decisions(output, "Ann", {0: "approved", 3: "rejected"}))
    page = Page(Path(write_review(output).page_uri).read_text("utf-8"))
    decided = {item["id"]: (item["decision"], item["reviewer"]) for item in page.data["items"] if "decision" in item}
    assert decided == {make_row(0).item_id: ("approved", "Ann"), make_row(3).item_id: ("rejected", "Ann")}
    assert write_review(output, ReviewRequest(unreviewed=True)).num_items == NUM_ITEMS - 2


def test_images_that_cannot_be_shown_are_left_out_and_said(output):
    missing, changed = (Path(output.root_uri) / output.image_path(make_row(index).item_key) for index in (1, 2))
    missing.unlink()
    changed.write_bytes((Path(output.root_uri) / output.image_path(make_row(3).item_key)).read_bytes())
    review = write_review(output)
    assert set(review.left_out) == {make_row(1).item_id, make_row(2).item_id}
    assert "was changed since the run" in review.left_out[make_row(2).item_id]
    assert "2 images could not be read" in " ".join(Path(review.page_uri).read_text("utf-8").split())


def test_subjects_out_of_reach_come_from_the_preview(tmp_path):
    output = write_run(tmp_path / "out", "secretmethod", range(2))
    rows = [
        replace(row, preview=make_row(0).preview, preview_panels=make_row(0).preview_panels)
        for row in output.read_result_rows()
        if row.row_index == 0
    ]
    output.write_results("later", 0, [replace(row, attempts=2) for row in rows])
    items = Page(Path(write_review(output).page_uri).read_text("utf-8")).data["items"]
    assert {item["id"]: item["subjects"] for item in items} == {make_row(0).item_id: 1, make_row(1).item_id: 0}


def test_the_command_writes_where_it_is_told(output, tmp_path):
    told = ezigen("review", "create", output.root_uri, "--to", tmp_path / "r.html", "--below", "dino=0.7")
    assert told.exit_code == 0, told.output
    assert (tmp_path / "r.html").exists()
    assert not (Path(output.root_uri) / "review.html").exists()
    for wrong in (("--below", "dino"), ("--below", "dino=nan"), ("--to", tmp_path / "r.txt")):
        assert ezigen("review", "create", output.root_uri, *wrong).exit_code == 2


# ---- in a browser


@needs_browser
def test_a_review_by_keyboard(browser, output, tmp_path):
    page = Path(write_review(output).page_uri)
    order = worst_first()
    browser.open(page)
    assert browser.run(IDS) == order[:24]
    assert browser.run(COUNTS) == "0 approved · 0 rejected · 30 left"
    for key in ("r", "a", "ArrowRight", "a", "r"):
        browser.press(key)
    assert browser.run(COUNTS) == "2 approved · 2 rejected · 26 left"
    browser.press("u")
    assert browser.run(CURRENT) == order[4]
    assert browser.run(COUNTS) == "2 approved · 1 rejected · 27 left"
    browser.press("a")
    browser.press("ArrowLeft")
    browser.press("n")
    for letter in "arc":  # in a note letters are letters
        browser.press(letter)
    browser.press("Enter")
    assert browser.run("document.activeElement.classList.contains('card')")
    set_field(browser, "reviewer", "Ann Ö.")
    file = exported(browser, tmp_path / "saved")
    assert file.name == "review-out-Ann-O.json"
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]

    apply_decisions(output, str(file))
    expected = dict.fromkeys(order, "unreviewed") | {order[0]: "rejected", order[1]: "approved"}
    assert states(output) == expected | {order[3]: "approved", order[4]: "approved"}
    notes = {one["item_id"]: one["note"] for one in json.loads(file.read_text("utf-8"))["decisions"]}
    assert notes == {order[0]: "", order[1]: "", order[3]: "", order[4]: "arc"}
    told = ezigen("results", output.root_uri, "--approved", "--format", "csv").stdout.splitlines()
    assert {line.split(",")[0] for line in told[1:]} == {order[1], order[3], order[4]}


@needs_browser
def test_filters_pages_and_what_is_kept(browser, output):
    page = Path(write_review(output).page_uri)
    order = worst_first()
    browser.open(page)
    click(browser, "#next")
    assert browser.run(IDS) == order[24:]
    click(browser, ".card [data-decision=rejected]")
    browser.press("ArrowLeft")  # back over the edge of the page
    assert browser.run(CURRENT) == order[23]
    assert browser.run(IDS) == order[:24]
    browser.press("a")
    browser.open(page)  # resumes
    assert browser.run(COUNTS) == "1 approved · 1 rejected · 28 left"
    set_field(browser, "state", "rejected")
    assert browser.run(IDS) == [order[24]]
    browser.press("a")  # it stays until the filters change, so that it can be taken back
    assert browser.run(IDS) == [order[24]]
    browser.press("u")
    set_field(browser, "state", "unreviewed")
    assert browser.run("list.shown.length") == 28
    set_field(browser, "score", "dino")
    set_field(browser, "below", "0.6", "input")
    assert browser.run(IDS) == [name for name in order if name in low_scores(0.6) and name not in order[23:25]]
    set_field(browser, "search", "no such thing", "input")
    assert not browser.run("document.querySelector('#nothing').hidden")
    click(browser, "#clear")
    set_field(browser, "sort", "clip_t")
    assert browser.run(IDS) == worst_first("clip_t")[:24]
    set_field(browser, "sort", "catalog")
    assert browser.run(IDS) == [make_row(index).item_id for index in range(24)]
    browser.press("ArrowDown")
    assert browser.run("list.current") == browser.run("numColumns()") > 1
    assert browser.errors == []


def low_scores(bound: float) -> set[str]:
    return {row.item_id for row in map(make_row, range(NUM_ITEMS)) if row.scores["dino"] < bound}


@needs_browser
def test_what_was_kept_does_not_count_for_another_image(browser, output):
    page = Path(write_review(output).page_uri)
    browser.open(page)
    browser.press("a")
    write_run(Path(output.root_uri), "otherbaseline", range(NUM_ITEMS))
    browser.open(Path(write_review(output).page_uri))
    assert browser.run(COUNTS) == "0 approved · 0 rejected · 30 left"


@needs_browser
def test_an_export_needs_a_name(browser, output, tmp_path):
    browser.open(Path(write_review(output).page_uri))
    browser.press("a")
    browser.downloads_to(tmp_path)
    click(browser, "#export")
    assert browser.run("document.activeElement.id") == "reviewer"
    assert not list(tmp_path.glob("review-*.json"))


@needs_browser
def test_hostile_texts_run_nothing(browser, tmp_path):
    output = write_run(tmp_path / "out", "secretmethod", range(1), prompt=HOSTILE, item_id=HOSTILE)
    page = Path(write_review(output).page_uri)
    html = page.read_text("utf-8")
    assert "<img src=x" not in html
    browser.open(page)
    browser.run("window.alert = () => { window.attacked = true; }")
    assert browser.run(IDS) == [HOSTILE]
    browser.press("a")
    assert browser.run("document.querySelectorAll('img[src=x], [onerror]').length") == 0
    assert browser.run("window.attacked") is None
    assert browser.errors == []


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(320, False), (390, True), (1440, False)])
def test_no_width_scrolls_sideways(browser, tmp_path, width, dark):
    output = write_run(tmp_path / ("o" * 60), "secretmethod", range(1), prompt="x" * 256, item_id="y" * 256)
    browser.open(Path(write_review(output).page_uri), width=width, height=844, phone=width < 500, dark=dark)
    browser.press("r")
    assert browser.run("document.documentElement.scrollWidth") <= width
