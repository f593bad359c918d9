"""The contact sheet and the words around numbers."""

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from PIL import Image

from tasks.reports import SheetLayout, contact_sheet, read_pictured_rows
from tasks.reports.contact_sheet import split_strip
from tasks.reports.wording import format_compact, format_decimal, format_seconds, format_span, format_time, plural
from tests.reports.rows import flat_panel, make_output, make_row, make_rows


def open_sheet(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return image.convert("RGB")


def test_a_sheet_shows_product_and_result_of_each_row():
    row = make_row(3)
    layout = SheetLayout(num_columns=2, picture_px=64, subject_px=32, gap_px=8)
    sheet = open_sheet(contact_sheet([row, make_row(4)], layout=layout, quality=95))
    expected = flat_panel(row, row.preview_panels - 1).getpixel((8, 12)), flat_panel(row, 0).getpixel((8, 12))
    found = sheet.getpixel((8 + 36 + 32, 8 + 48)), sheet.getpixel((8 + 16, 8 + 32 + 24))
    for wanted, got in zip(expected, found, strict=True):
        assert max(abs(a - b) for a, b in zip(wanted, got, strict=True)) < 24
    assert sheet.width == 2 * (64 + 4 + 32) + 3 * 8


def test_a_sheet_is_small_enough_for_a_flows_page():
    assert len(contact_sheet(list(make_rows(12)))) < 60_000


def test_rows_without_a_strip_are_passed_over():
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([make_row(0, paint=None)])
    one = contact_sheet([make_row(0, paint=None), make_row(1)])
    assert open_sheet(one).size == open_sheet(contact_sheet([make_row(1)])).size


@pytest.mark.parametrize(
    "prompt", ["", "word " * 200, "x" * 2000, "日本語のとても長い説明文 " * 20, "line\nbreak\ttab"]
)
def test_any_prompt_fits_its_caption(prompt):
    assert (
        open_sheet(contact_sheet([replace(make_row(0), prompt=prompt)])).size
        == open_sheet(contact_sheet([make_row(0)])).size
    )


def test_panels_come_apart_where_they_were_joined():
    row = make_row(2)
    panels = split_strip(row)
    assert len(panels) == row.preview_panels
    assert {panel.size for panel in panels} == {(16, 16)}


def test_pictured_rows_are_the_first_of_the_catalog(tmp_path):
    rows = [make_row(0, paint=None), *(make_row(i) for i in (9, 4, 7, 2))]
    found = read_pictured_rows(make_output(tmp_path / "o", rows, shard_size=2), 3)
    assert [row.row_index for row in found] == [2, 4, 7]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (3.1, "3.10"),
        (0.04213, "0.0421"),
        (22.44, "22.4"),
        (117.2, "117"),
        (12345.6, "12,346"),
        (99.96, "100"),
    ],
)
def test_decimals(value, text):
    assert format_decimal(value) == text


def test_spans_times_and_counts():
    assert [format_span(s) for s in (0.25, 59.4, 432, 3600, 100_000)] == [
        "0.25 s",
        "59 s",
        "7 min 12 s",
        "1 h",
        "1 d 3 h",
    ]
    assert [format_seconds(s) for s in (None, 0.0123, 3.456)] == ["–", "12.3 ms", "3.46 s"]
    assert [format_compact(v) for v in (0.25, 400, 5000, 20_000, 1_500_000)] == ["0.25", "400", "5,000", "20k", "1.5M"]
    assert format_time(datetime(2026, 1, 2, 3, 4, tzinfo=UTC)) == "2 Jan 2026, 03:04 UTC"
    assert [plural(n, "image") for n in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
