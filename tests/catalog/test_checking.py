import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezigen.config import ErrorCode, ItemError
from tasks.catalog.checking import BatchChecker, RowChecker
from tasks.datasets.catalogs import CATALOG_SCHEMA
from tasks.storage import Locations
from tasks.storage.keys import words_to_hex
from tests.catalog.conftest import FINGERPRINT, good_row

CHECKER = RowChecker(FINGERPRINT, Locations(allowed_roots=("/data", "s3://bucket/in"), base_uri="/data/catalogs"))
NONE = "0" * 32
KNOWN_REFUSAL = "606b926a41570b7d95a6e692b1358dbb"


def check_batch(rows):
    batch = pa.RecordBatch.from_pylist(rows, schema=CATALOG_SCHEMA)
    checked = BatchChecker(CHECKER).check(batch, first_index=10)
    return words_to_hex(checked.row_words), {position: (code, key) for position, code, key in checked.refused}


def check_row(position, row):
    """The row rule's key and refusal."""
    values = {name: row.get(name) for name in CATALOG_SCHEMA.names}
    try:
        return CHECKER.keys.of_row(CHECKER.check(10 + position, values)), None
    except ItemError as error:
        return NONE, (error.code, CHECKER.refusal_key(error.code, values))


def assert_agree(rows):
    """The batch rule gives what the row rule gives, row by row."""
    keys, refused = check_batch(rows)
    for position, row in enumerate(rows):
        assert (keys[position], refused.get(position)) == check_row(position, row), row


texts = st.none() | st.text(max_size=6) | st.text(alphabet=' \\"\t\n\x85\xa0\u3000\u200b~[:/.a', max_size=6)
seeds = st.none() | st.sampled_from(["0", "7", "007", "+7", "7.0", "7.5", "-1", "nan", "NaN", "inf", "1e3", " 7 ", "٣"])
seeds |= st.integers(-(2**70), 2**70).map(str)
locations = texts | st.sampled_from(
    ["/data/x.png", "/data/../x", "/etc/passwd", "s3://bucket/in/x", "s3://bucket/in/../x", "s3://bucket/inx",
     "../x.png", "../../x.png", "a/../b.png", "file:///data/x", "~/x", "ftp://x/y",
     '["a", "b"]', '["a"]', "[", "[]", '["a","b","c","d","e"]']
)  # fmt: skip
rows = st.fixed_dictionaries(
    {},
    optional={
        "item_id": texts,
        "subject_uri": locations,
        "subject_class": texts,
        "prompt": texts,
        "negative_prompt": texts,
        "seed": seeds,
        "subject_mask_uri": locations,
        "source_uri": st.sampled_from([None, "x", "../x"]),
        "mask_uri": st.sampled_from([None, None, "y", "/etc/y"]),
        "mask_box": st.sampled_from([None, None, "1,2,3,4", "4,3,2,1", "x"]),
        "subject_mix": st.sampled_from([None, None, "", "[1]", "[0.5,0.5]", "[0.5", "x"]),
    },
)


@settings(deadline=None, max_examples=300)
@given(st.lists(rows | rows.map(lambda row: good_row() | row), max_size=5))
def test_the_batch_rule_is_the_row_rule(given_rows):
    assert_agree(given_rows)


def test_every_character_is_judged_alike_inside_and_at_the_ends():
    points = [*range(0x3100), *range(0xD7F0, 0xD800), *range(0xFE00, 0x10000), 0x1F600, 0xE0001, sys.maxunicode]
    characters = [chr(c) for c in points if not 0xD800 <= c < 0xE000]
    assert_agree([good_row(prompt=f"a{c}a") for c in characters])
    assert_agree([good_row(prompt=f"a{c}") for c in characters])
    assert_agree([good_row(item_id=f"{c}a") for c in characters])
    assert_agree([good_row(subject_uri=f"{c}a") for c in characters])


@pytest.mark.parametrize("column", ["item_id", "prompt", "subject_class", "negative_prompt", "subject_uri"])
def test_limits_count_characters_not_bytes(column):
    limit = {"item_id": 256, "subject_class": 200, "subject_uri": 2048}.get(column, 2000)
    assert_agree([good_row(**{column: letter * length}) for letter in "aé😀" for length in (limit, limit + 1)])
    assert check_batch([good_row(**{column: "é" * limit}), good_row(**{column: "é" * (limit + 1)})])[1].keys() == {1}


def test_a_common_row_never_takes_the_slow_path(monkeypatch):
    """10 million rows depend on it."""
    monkeypatch.setattr(RowChecker, "check", lambda *_: pytest.fail("slow path"))
    keys, refused = check_batch(
        [
            good_row(),
            good_row(item_id='5" pipe \\ "DN 20"', prompt="Größe 5, 日本語"),
            good_row(seed="123", negative_prompt="blur", subject_mask_uri="m/1.png"),
            good_row(subject_uri="/data/pictures/1.png"),
            good_row(subject_uri="s3://bucket/in/1.png"),
            good_row(subject_class=None),
        ]
    )
    assert len(set(keys)) == 6
    assert not refused


def test_broken_lines_and_masks_without_a_source_are_refused():
    _, refused = check_batch([good_row(broken="line 3 has 2 cells"), good_row(source_uri="x"), good_row(mask_uri="x")])
    assert {position: code for position, (code, _) in refused.items()} == {
        0: ErrorCode.ROW_INVALID,
        2: ErrorCode.ROW_INVALID,
    }


@pytest.mark.parametrize("column", ["source_uri", "mask_uri"])
def test_pictures_of_edits_may_not_lie_anywhere(column):
    _, refused = check_batch([good_row(**{"source_uri": "x", column: "/etc/passwd"})])
    assert refused[0][0] is ErrorCode.LOCATION_DENIED


def test_the_key_of_a_refused_row_did_not_change_with_younger_columns():
    assert CHECKER.refusal_key(ErrorCode.ROW_INVALID, good_row(prompt=None)) == KNOWN_REFUSAL
    with_box = good_row(prompt=None, source_uri="x", mask_box="1,2,3,4")
    without = good_row(prompt=None, source_uri="x")
    with_mix, as_box = without | {"subject_mix": "[1]"}, without | {"mask_box": "[1]"}
    refused = [with_box, without, with_mix, as_box, with_box | {"subject_mix": "[1]"}]
    assert len({CHECKER.refusal_key(ErrorCode.ROW_INVALID, row) for row in refused}) == len(refused)


def test_edits_are_counted():
    batch = pa.RecordBatch.from_pylist(
        [good_row(0), good_row(1, source_uri="x"), good_row(2, mask_uri="x")], schema=CATALOG_SCHEMA
    )
    assert BatchChecker(CHECKER).check(batch, 0).edits == [1]


def test_distinct_texts_are_collected():
    batch = pa.RecordBatch.from_pylist([good_row(0), good_row(1), good_row(2, prompt=" odd ")], schema=CATALOG_SCHEMA)
    checked = BatchChecker(CHECKER).check(batch, 0)
    assert sorted(checked.prompts) == ["odd", "on a beach"]
    assert sorted(checked.subjects) == ["p/0.png", "p/1.png", "p/2.png"]
    assert np.unique(checked.id_words, axis=0).shape == (3, 2)
