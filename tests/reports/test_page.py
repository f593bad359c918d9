"""The page is complete in itself, safe whatever the rows say, and within its budget."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ezigen.config import ErrorCode
from tasks.reports import PageLimits, read_figures, summary_markdown, write_report
from tasks.reports.items import to_data_uri
from tasks.reports.remedies import EXPLANATIONS, explain
from tasks.storage import RunOutput
from tests.reports.rows import RUN_ID, make_output, make_record, make_row, make_rows

HOSTILE = '</script><img src=x onerror="alert(1)"><!--<script>\'&amp;\u2028\u202e]]>{{1237*1237}}'


class Page(HTMLParser):
    """The parts of a page that its tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, str] = {}
        self.text = ""
        self._open = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self._open = str(values.get("id") or tag) if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open:
            self.raw[self._open] = self.raw.get(self._open, "") + data
        else:
            self.text += data

    @property
    def data(self):
        return json.loads(self.raw["data"])


def open_page(output: RunOutput, limits: PageLimits | None = None) -> Page:
    return Page(Path(write_report(output, limits)).read_text("utf-8"))


def hostile_rows():
    done, failed = make_row(0), make_row(1, failed=ErrorCode.ROW_INVALID)
    texts = {"item_id": HOSTILE, "prompt": HOSTILE, "subject_uri": HOSTILE, "subject_class": HOSTILE, "worker": HOSTILE}
    return [
        replace(done, **texts, stop_reason=HOSTILE, scores={HOSTILE: 0.5}, image_uri="javascript:alert(1)"),
        replace(failed, **texts, error_message=HOSTILE),
    ]


def hostile_record():
    record = make_record({HOSTILE: 3, "rows": 2}, 60, message=HOSTILE, model={"model": HOSTILE, HOSTILE: HOSTILE})
    return replace(record, history=tuple(replace(past, run_id=HOSTILE) for past in record.history))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    rows = make_rows(36, num_failed=4)
    return open_page(make_output(tmp_path_factory.mktemp("demo"), rows, record=make_record({"rows": 40}, 80)))


def test_the_page_loads_nothing(page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
    assert "url(" not in page.raw["style"]
    assert "@import" not in page.raw["style"]


def test_the_policy_allows_this_script_and_style_alone(page):
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.raw[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_the_page_says_what_happened(page):
    text = re.sub(r"\s+", " ", page.text)
    assert "32 of 40 images are ready. 4 items failed. 4 items are still to do." in text
    assert "the picture file was not found (1)" in text
    assert "Upload the picture or correct its address" in text
    assert "22 Nov 2026, 03:12 UTC" in text
    assert "this one" in text


def test_items_are_stored_once_in_the_catalogs_order(page):
    data, columns = page.data, page.data["columns"]
    assert {len(column) for name, column in columns.items() if name != "scores"} == {36}
    assert columns["index"] == sorted(columns["index"])
    assert len(set(columns["key"])) == 36
    assert [data["strings"][place] for place in columns["prompt"][:2]] == [
        "a teapot on a beach",
        "a running shoe on a beach",
    ]
    assert columns["seed"][0] == str(make_row(0).seed)
    strips = {name for name in page.raw if name.startswith("strip-")}
    assert strips == {f"strip-{i}" for i, picture in enumerate(columns["picture"]) if picture}
    assert len(strips) == 32


def test_hostile_text_stays_text(tmp_path, page):
    output = make_output(tmp_path / "a<b>&'\"", hostile_rows(), record=hostile_record())
    hostile = open_page(output)
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in page.tags} | {"bdi", "p"}
    assert not [attributes for _, attributes in hostile.tags if any(name.startswith("on") for name in attributes)]
    assert hostile.data["columns"]["id"] == [HOSTILE, HOSTILE]
    assert hostile.data["columns"]["message"][1] == HOSTILE
    assert HOSTILE in hostile.text
    assert str(1237 * 1237) not in hostile.text  # 7 * 7 would also be a minute of the page's clock
    assert hostile.data["columns"]["image"] == [None, None]


@pytest.mark.parametrize(
    "uri", ["../../etc/passwd", "images/../x.png", "https://elsewhere/x.png", "images/ff/" + "f" * 32 + ".png"]
)
def test_only_an_items_own_image_is_linked(tmp_path, uri):
    page = open_page(make_output(tmp_path / "o", [replace(make_row(0), image_uri=uri), make_row(1)]))
    nothing, suffix = page.data["columns"]["image"]
    assert nothing is None
    assert page.data["strings"][suffix] == ".png"


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_an_image_is_linked_in_its_format(tmp_path, suffix):
    row = make_row(1)
    page = open_page(make_output(tmp_path / "o", [replace(row, image_uri=row.image_uri.replace(".png", suffix))]))
    (place,) = page.data["columns"]["image"]
    assert page.data["strings"][place] == suffix


def test_the_latest_attempt_counts(tmp_path):
    failed = make_row(5, failed=ErrorCode.STORAGE_ERROR, run_id="20261101T000000Z-000001", at_s=-9000)
    rows = [failed, replace(make_row(5), attempts=2)]
    page = open_page(make_output(tmp_path / "o", rows, shard_size=1, record=make_record({"rows": 1}, 60)))
    assert page.data["columns"]["failed"] == [0]
    assert page.data["columns"]["attempts"] == [2]
    assert "The image is ready." in page.text


def test_what_is_left_out_is_said(tmp_path):
    output = make_output(tmp_path / "o", make_rows(200, num_failed=40))
    page = open_page(output, PageLimits(max_pictures=20, max_items=50, max_failures_per_code=2))
    text = re.sub(r"\s+", " ", page.text)
    assert "Previews of 20 of 160 images." in text
    assert "30 others are listed with their facts" in text
    assert "110 images are not listed here" in text
    assert "32 failed items are counted by reason but not listed." in text
    assert len(page.data["columns"]["id"]) == 58
    assert sum(page.data["columns"]["picture"]) == 20


def test_pictures_stay_within_their_bytes(tmp_path):
    output = make_output(tmp_path / "o", make_rows(60))
    page = open_page(output, PageLimits(max_picture_bytes=8000))
    strips = [text for name, text in page.raw.items() if name.startswith("strip-")]
    assert 4000 < sum(map(len, strips)) <= 8000
    assert "Previews of" in page.text


@pytest.mark.parametrize("record", [None, make_record({}, 0.0, state="running", finished_at=None, history=())])
def test_an_output_without_rows_has_a_page(tmp_path, record):
    page = open_page(make_output(tmp_path / "o", [], record=record))
    assert "There is no result yet." in page.text
    assert "There is no image yet." in page.text
    assert page.data["columns"]["id"] == []


def test_only_failures_make_a_page(tmp_path):
    page = open_page(make_output(tmp_path / "o", [make_row(0, failed=ErrorCode.WORKER_DIED)]))
    assert "0 of 1 image is ready. 1 item failed." in re.sub(r"\s+", " ", page.text)
    assert "The item crashed its worker" in page.text


def test_a_code_of_another_version_is_shown_as_unknown(tmp_path):
    import pyarrow.parquet as pq

    output = make_output(tmp_path / "o", [make_row(0, failed=ErrorCode.TIMED_OUT), make_row(1)])
    shard = next((tmp_path / "o" / "results").glob("*.parquet"))
    table = pq.read_table(shard)
    place = table.schema.get_field_index("error_code")
    table = table.set_column(place, table.schema.field(place), [["from_the_future", None]])
    pq.write_table(table, shard)
    page = open_page(output)
    assert "from_the_future" in page.text
    assert explain("from_the_future").title in page.text


def test_writing_again_replaces_the_page_in_one_step(tmp_path):
    output = make_output(tmp_path / "o", make_rows(5))
    first = Path(write_report(output)).read_bytes()
    second = Path(write_report(output)).read_bytes()
    assert first.replace(b"x", b"")[:200] == second.replace(b"x", b"")[:200]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["report.html", "results"]


def test_every_code_is_explained():
    assert set(EXPLANATIONS) == set(ErrorCode)


@pytest.mark.parametrize(
    "picture",
    [None, b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"RIFF1234AVI ", b"GIF89a", b"\xff\xd8\xff" * 200_000],
)
def test_a_preview_that_is_no_picture_is_not_shown(picture):
    assert to_data_uri(picture) is None


def test_the_summary_for_a_flow_has_no_text_of_the_catalog(tmp_path):
    text = summary_markdown(read_figures(make_output(tmp_path / "o", hostile_rows())))
    assert "| 1 | 1 |" in text
    assert "`row_invalid`" in text
    assert "<" not in text


def test_an_output_on_an_object_store_gets_its_page_too():
    output = RunOutput("memory://reports-test/run")
    output.write_results(RUN_ID, 0, [make_row(0)])
    assert write_report(output).startswith("memory://")
    assert b"<!doctype html>" in io.BytesIO(output.read("report.html")).read(60)
