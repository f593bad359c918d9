"""The page in a real browser: no errors, filters and paging work, it fits a phone, the keyboard reaches everything."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ezigen.config import ErrorCode
from tasks.reports import PageLimits, write_report
from tests.reports.browser import CHROMIUM, Browser
from tests.reports.rows import RUN_ID, make_output, make_record, make_row, make_rows
from tests.reports.test_page import hostile_record, hostile_rows

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")

IDS = "[...document.querySelectorAll('#items .name')].map(element => element.textContent)"
COUNT = "document.querySelector('#count').textContent"
INK = """[...document.querySelectorAll('%s canvas')].filter(canvas => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.some((value, i) => i %% 4 === 3 && value > 0); }).length"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    row = make_row(0)
    picture = folder / row.image_uri
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64), (10, 200, 30)).save(picture)
    rows = make_rows(60, num_failed=4)
    return Path(write_report(make_output(folder, rows, record=make_record({"rows": 60}, 130))))


def set_field(browser, name, value, event="change"):
    dispatch = f"field.dispatchEvent(new Event({event!r}, {{bubbles: true}}))"
    browser.run(
        f"(() => {{ const field = document.querySelector('#{name}'); field.value = {value!r}; {dispatch}; }})()"
    )


def click(browser, selector):
    browser.run(f"document.querySelector({selector!r}).click()")


def test_the_page_opens_without_errors_and_without_requests(browser, report):
    browser.open(report)
    browser.wait_for(f"{INK % '#items'} > 100")
    assert browser.errors == []
    assert browser.requests == [report.as_uri()]
    assert browser.run(COUNT) == "1–24 of 60 items"
    assert browser.run(f"{IDS}.length") == 24


def test_search_filters_and_sorting(browser, report):
    browser.open(report)
    set_field(browser, "search", "GUITAR grass", "input")
    browser.wait_for(f"{COUNT} !== '1–24 of 60 items'")  # the search waits for a pause in typing
    ids = browser.run(IDS)
    assert ids
    assert all(name.startswith("guitar") for name in ids)
    set_field(browser, "search", "no such thing", "input")
    browser.wait_for("!document.querySelector('#nothing').hidden")
    click(browser, "#clear")
    assert browser.run(COUNT) == "1–24 of 60 items"
    set_field(browser, "code", ErrorCode.IMAGE_MISSING.value)
    assert browser.run(COUNT) == "1 of 60 items"
    set_field(browser, "status", "done")
    assert browser.run(COUNT) == "1–24 of 56 of 60 items"
    set_field(browser, "status", "")
    set_field(browser, "sort", "score-dino")
    best = browser.run(IDS)[0]
    click(browser, "#direction")
    worst = browser.run(IDS)[0]
    done = sorted(
        (row for row in make_rows(60, num_failed=4, paint=None) if row.scores), key=lambda row: row.scores["dino"]
    )
    assert (best, worst) == (done[-1].item_id, done[0].item_id)
    assert browser.errors == []


def test_paging_shows_every_item_once(browser, report):
    browser.open(report)
    seen = browser.run(IDS)
    for _ in range(2):
        click(browser, "[data-go=next]")
        seen += browser.run(IDS)
    assert browser.run("document.querySelector('[data-go=next]').disabled")
    assert sorted(seen) == sorted({row.item_id for row in make_rows(60, paint=None)})
    set_field(browser, "page", "2")
    assert browser.run(COUNT) == "25–48 of 60 items"
    set_field(browser, "page", "9999")
    assert browser.run(COUNT) == "49–60 of 60 items"
    assert browser.run("document.activeElement.id") == "gallery-title"


def test_an_item_opens_turns_and_closes_by_keyboard(browser, report):
    browser.open(report)
    browser.run("document.querySelector('#items button').focus()")
    browser.press("Enter")
    browser.wait_for("document.querySelector('#viewer').open")
    # The full picture beside the page replaces the enlarged preview.
    browser.wait_for("document.querySelector('#viewer-picture canvas[aria-label=\"Result in full size\"]')")
    first = browser.run("document.querySelector('#viewer-title').textContent")
    assert browser.run("location.hash").startswith("#item=")
    assert browser.run("document.querySelectorAll('#viewer-film button').length") == make_row(0).preview_panels
    browser.press("ArrowRight")
    second = browser.run("document.querySelector('#viewer-title').textContent")
    browser.press("ArrowLeft")
    assert (first, second) == (make_row(0).item_id, make_row(1).item_id)
    browser.press("ArrowRight")
    browser.press("Escape")
    browser.wait_for("!document.querySelector('#viewer').open")
    assert browser.run("document.activeElement.closest('.item').dataset.item") == "1"
    assert browser.run("location.hash") == ""


def test_a_link_to_an_item_opens_it(browser, report):
    browser.open(report)
    browser.run(f"location.hash = 'item={make_row(7).item_key}'")
    browser.wait_for("document.querySelector('#viewer').open")
    assert browser.run("document.querySelector('#viewer-title').textContent") == make_row(7).item_id
    # Not on the page: nothing opens, nothing breaks.
    browser.run("document.querySelector('#viewer').close(); location.hash = 'item=../../x'")
    assert browser.run("document.querySelector('#viewer').open") is False


def test_failures_are_listed_by_reason(browser, report):
    browser.open(report)
    assert browser.run("document.querySelectorAll('#failed-rows tr').length") == 4
    click(browser, "[data-code=timed_out]")
    assert browser.run("document.querySelectorAll('#failed-rows tr').length") == 1
    assert "item_timeout_s" in browser.run("document.querySelector('#failed-rows').textContent")


def test_charts_are_read_by_keyboard(browser, report):
    browser.open(report)
    browser.run("document.querySelector('#chart-loops .plot-bars').focus()")
    for _ in range(3):
        browser.press("ArrowRight")
    assert browser.run("document.querySelector('#chart-loops [data-note]').textContent").startswith("2 loops: ")


@pytest.fixture(scope="module")
def long_report(tmp_path_factory) -> Path:
    """Texts without a single space to break them at."""
    long = "x" * 256
    rows = [
        replace(make_row(0), item_id=long, prompt=long, worker=long),
        replace(make_row(1, failed=ErrorCode.ROW_INVALID), item_id=long, error_message=long),
    ]
    record = make_record({"rows": 2, long: 3}, 60, message=long)
    return Path(write_report(make_output(tmp_path_factory.mktemp("long"), rows, record=record)))


@pytest.mark.parametrize(("width", "dark"), [(320, False), (390, True), (768, True), (1440, False)])
def test_no_width_scrolls_sideways(browser, long_report, width, dark):
    browser.open(long_report, width=width, height=844, phone=width < 500, dark=dark)
    for view in ("steps", "results"):
        click(browser, f"[value={view}]")
        assert browser.run("document.documentElement.scrollWidth") <= width
    click(browser, "#items button")
    assert browser.run(
        "document.querySelector('.viewer-body').scrollWidth <= document.querySelector('.viewer-body').clientWidth"
    )
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, background[4:-1].split(","))) < 60) == dark


def test_hostile_rows_run_nothing(browser, tmp_path):
    report = Path(write_report(make_output(tmp_path / "o", hostile_rows(), record=hostile_record())))
    browser.open(report)
    browser.run("window.alert = () => { window.attacked = true; }")
    for item in (0, 1):
        click(browser, f"[data-item='{item}'] button")
        browser.run("document.querySelector('#viewer').close()")
    assert browser.run("document.querySelectorAll('img[src=x], [onerror]').length") == 0
    assert browser.run("window.attacked") is None
    assert browser.run("document.querySelectorAll('a[href^=javascript]').length") == 0
    assert browser.errors == []


def test_the_policy_stops_what_would_get_in(browser, report):
    browser.open(report)
    image = '<img src="https://elsewhere.example/x.png" onerror="window.attacked = true">'
    browser.run(f"document.body.insertAdjacentHTML('beforeend', {image!r})")
    assert browser.run("fetch('https://elsewhere.example/').then(() => 'loaded', () => 'refused')") == "refused"
    assert browser.run("window.attacked") is None
    assert browser.requests == [report.as_uri()]


def test_a_damaged_preview_is_said_to_be_missing(browser, tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (96, 16)).save(data, "JPEG")
    row = replace(make_row(0), preview=data.getvalue()[:40])
    browser.open(Path(write_report(make_output(tmp_path / "o", [row]))))
    browser.wait_for("document.querySelector('.no-preview')")
    click(browser, "#items button")
    assert browser.errors == []


def test_thousands_of_items_can_be_paged(browser, tmp_path):
    strip = make_row(0).preview
    rows = (
        replace(row, preview=row.num_loops and strip, preview_panels=6 if row.num_loops else 0)
        for row in make_rows(3000, num_failed=100, paint=None)
    )
    output = make_output(tmp_path / "o", rows, record=make_record({"rows": 3000}, 6100))
    browser.open(Path(write_report(output, PageLimits(max_pictures=1000))))
    assert browser.run(COUNT) == "1–24 of 1,000 of 3,000 items"
    set_field(browser, "status", "")
    set_field(browser, "sort", "seconds")
    click(browser, "[data-go=last]")
    assert browser.run(COUNT) == "2,977–3,000 of 3,000 items"
    assert browser.errors == []


def test_runs_can_be_told_apart(browser, tmp_path):
    rows = [
        *(make_row(i) for i in range(3)),
        *(make_row(i, run_id="20261120T000000Z-00aa00", at_s=-90_000) for i in range(3, 8)),
    ]
    browser.open(Path(write_report(make_output(tmp_path / "o", rows, record=make_record({"rows": 8}, 60)))))
    set_field(browser, "run", RUN_ID)
    assert browser.run(COUNT) == "3 of 8 items"
