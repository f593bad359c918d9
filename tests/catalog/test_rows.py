import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezigen.config import ErrorCode, ItemError
from tasks.catalog.rows import (
    DEFAULT_CLASS,
    ItemKeys,
    RunFingerprint,
    derive_seed,
    join_uris,
    parse_row,
    parse_seed,
    split_uris,
)
from tests.catalog.conftest import FINGERPRINT, good_row

KEYS = ItemKeys(FINGERPRINT)


def test_known_answer():
    """Keys must never change by accident: every stored result would be made again."""
    row = parse_row(3, good_row(item_id='5" pipe', prompt="größer", seed="7", negative_prompt="blur"))
    assert KEYS.of_row(row) == "cd90b103f6a845322975e6b5b1657b3d"
    assert derive_seed("item 0", "on a beach") == 4432689972770810639


def test_the_key_can_be_computed_from_its_description():
    row = parse_row(0, good_row(subject_uri='["a.png", "b.png"]', subject_mask_uri="m.png"))
    text = json.dumps(
        ["ezigen-item/1", "s", "m", "a", row.item_id, ["a.png", "b.png"], "mug", "on a beach", "", row.seed, "m.png",
         None, None],
        ensure_ascii=False, separators=(",", ":"),
    )  # fmt: skip
    assert KEYS.of_row(row) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_the_key_depends_on_every_field_but_the_position():
    row = parse_row(0, good_row())
    assert KEYS.of_row(replace(row, index=9)) == KEYS.of_row(row)
    changes = {
        "item_id": "other", "subject_uris": ("p/0.png", "q"), "subject_class": "cup", "prompt": "x",
        "negative_prompt": "x", "seed": 1, "subject_mask_uri": "x", "source_uri": "x", "mask_uri": "x",
    }  # fmt: skip
    keys = [KEYS.of_row(replace(row, **{name: value})) for name, value in changes.items()]
    keys += [ItemKeys(replace(FINGERPRINT, **{name: "x"})).of_row(row) for name in ("sampler", "model", "adapter")]
    assert len({KEYS.of_row(row), *keys}) == 1 + len(keys)


def test_fields_cannot_run_into_each_other():
    a = parse_row(0, good_row(item_id='a","b', prompt="c"))
    b = parse_row(0, good_row(item_id="a", prompt='b","c'))
    assert KEYS.of_row(a) != KEYS.of_row(b)
    assert ItemKeys(RunFingerprint("ab", "c", "d")).prefix != ItemKeys(RunFingerprint("a", "bc", "d")).prefix


def test_a_refusal_never_has_the_key_of_a_row():
    raw = list(good_row().values())
    keys = {KEYS.of_refusal(code, raw) for code in ErrorCode}
    assert len({*keys, KEYS.of_row(parse_row(0, good_row()))}) == len(ErrorCode) + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"item_id": None}, "item_id is empty"),
        ({"item_id": "  "}, "item_id is empty"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "x" * 20_000}, "prompt has 20,000 characters; at most 2,000"),
        ({"prompt": "a\x07b"}, r"prompt contains the character U\+0007"),
        ({"item_id": "a\nb"}, r"U\+000A"),
        ({"item_id": "a\u2028b"}, r"U\+2028"),
        ({"prompt": "\ud800"}, r"U\+D800"),
        ({"item_id": "x" * 257}, "at most 256"),
        ({"subject_uri": None}, "subject_uri is empty"),
        ({"subject_uri": "[]"}, "subject_uri is empty"),
        ({"subject_uri": '["a", ""]'}, "lists an empty location"),
        ({"subject_uri": '["a", 1]'}, "strings only"),
        ({"subject_uri": "[broken"}, "no JSON array"),
        ({"subject_class": "[broken"}, "subject_class starts with '\\[' but is no JSON array"),
        ({"subject_class": '["mug", "cup"]'}, "lists 2 classes for 1 pictures"),
        ({"subject_class": '["mug", " "]', "subject_uri": '["a", "b"]'}, "array of words only"),
        ({"subject_class": '["mug", 1]', "subject_uri": '["a", "b"]'}, "array of words only"),
        ({"subject_uri": "[" * 100_000}, "no JSON array"),
        ({"subject_uri": json.dumps(list("abcde"))}, "lists 5 pictures; at most 4"),
        ({"subject_uri": "x" * 3000}, "at most 2,048"),
        ({"seed": "nan"}, "seed is 'nan'"),
        ({"seed": "inf"}, "seed is 'inf'"),
        ({"seed": "1.5"}, "whole number"),
        ({"seed": "1e3"}, "whole number"),
        ({"seed": "٣"}, "whole number"),
        ({"seed": "-1"}, "between 0"),
        ({"seed": str(2**63)}, "between 0"),
        ({"seed": "9" * 10_000}, "between 0"),
        ({"mask_uri": "m.png"}, "mask_uri says what to edit, but source_uri is empty"),
        ({"mask_box": "1,2,3,4"}, "mask_box says what to edit, but source_uri is empty"),
        ({"source_uri": "s.png", "mask_uri": "m.png", "mask_box": "1,2,3,4"}, "keep one of them"),
        ({"source_uri": "s.png", "mask_box": "1,2,3"}, "mask_box is '1,2,3'; write x0,y0,x1,y1 in whole pixels"),
        ({"source_uri": "s.png", "mask_box": "1.5,2,3,4"}, "whole pixels"),
        ({"source_uri": "s.png", "mask_box": "1,2,1,4"}, "has no area"),
        ({"source_uri": "s.png", "mask_box": "1,2,9,1" + "0" * 99}, "whole pixels"),
        ({"subject_mix": "[0.5"}, r"subject_mix is '\[0.5'; write a JSON array of shares"),
        ({"subject_mix": "0.5"}, "JSON array of shares"),
        ({"subject_mix": "[true]"}, "JSON array of shares"),
        ({"subject_mix": '["1"]'}, "JSON array of shares"),
        ({"subject_mix": "[" * 100_000}, "JSON array of shares"),
        ({"subject_mix": "[0.5, 0.5]"}, "subject_mix lists 2 shares for 1 pictures"),
        ({"subject_mix": "[]"}, "subject_mix lists 0 shares for 1 pictures"),
        ({"subject_mix": "[0.9]"}, r"subject_mix is \[0.9\]; shares are at least 0 and 1 together"),
        ({"subject_mix": "[NaN]"}, "shares are at least 0"),
        ({"subject_mix": "[1e400]"}, "shares are at least 0"),
        ({"subject_mix": f"[1{'0' * 400}]"}, "shares are at least 0"),
        ({"subject_mix": "[1.5, -0.5]", "subject_uri": '["a", "b"]'}, "shares are at least 0"),
        ({"source_uri": "s\x07"}, r"source_uri contains the character U\+0007"),
    ],
)
def test_wrong_rows_say_what_is_wrong(change, words):
    with pytest.raises(ItemError, match=words) as raised:
        parse_row(0, good_row(**change))
    assert raised.value.code is ErrorCode.ROW_INVALID


def test_a_row_with_a_source_edits_it():
    row = parse_row(0, good_row(source_uri=" s.png ", mask_uri="m.png"))
    assert (row.edits, row.source_uri, row.mask_uri, row.mask_box) == (True, "s.png", "m.png", None)
    row = parse_row(0, good_row(source_uri="s.png", mask_box=" 10, -5 ,200,180"))
    assert (row.mask_uri, row.mask_box) == (None, (10, -5, 200, 180))
    assert parse_row(0, good_row(source_uri="s.png")).edits
    assert not parse_row(0, good_row()).edits


def test_only_the_keys_of_edits_know_the_box_and_the_settings_of_edits():
    other = ItemKeys(replace(FINGERPRINT, edit="e"))
    plain, edit = parse_row(0, good_row()), parse_row(0, good_row(source_uri="s.png", mask_box="1,2,3,4"))
    assert other.of_row(plain) == KEYS.of_row(plain)
    keys = [
        KEYS.of_row(edit),
        other.of_row(edit),
        *(KEYS.of_row(replace(edit, mask_box=box)) for box in (None, (0, 2, 3, 4))),
    ]
    assert len({KEYS.of_row(plain), *keys}) == 5
    text = json.dumps(
        ["ezigen-item/1", "s", "m", "a", edit.item_id, ["p/0.png"], "mug", "on a beach", "", edit.seed, None,
         "s.png", None, [1, 2, 3, 4], "e"],
        separators=(",", ":"),
    )  # fmt: skip
    assert other.of_row(edit) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_ids_may_hold_anything_printable():
    for item_id in ("../../etc/passwd", "/abs", "a b", "日本", "😀", "%2e%2e", "~", "'; drop", "{{x}}"):
        assert parse_row(0, good_row(item_id=item_id)).item_id == item_id


@pytest.mark.parametrize(
    ("cell", "seed"), [("7", 7), (" 7 ", 7), ("7.0", 7), ("007", 7), ("+7", 7), ("-0", 0), ("", None)]
)
def test_seeds(cell, seed):
    assert parse_seed(cell) == seed


def test_the_largest_seed():
    assert parse_seed(str(2**63 - 1)) == 2**63 - 1


def test_a_row_without_seed_gets_one_from_its_id_and_prompt():
    seeds = [
        parse_row(i, good_row(item_id=a, prompt=p)).seed
        for i, (a, p) in enumerate([("a", "p"), ("a", "q"), ("b", "p")])
    ]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert parse_row(99, good_row(item_id="a", prompt="p")).seed == seeds[0]


def test_white_space_around_values_does_not_matter():
    padded = {name: f" {value}\t" for name, value in good_row().items()}
    assert parse_row(0, padded) == parse_row(0, good_row())
    assert parse_row(0, good_row(subject_class=" ")).subject_class == DEFAULT_CLASS


@given(st.lists(st.text(alphabet='ab[]";,\\ \n', min_size=1), min_size=1, max_size=4))
def test_locations_survive_one_cell(uris):
    assert split_uris(join_uris(uris)) == uris


def test_pictures_have_one_class_or_one_each():
    both = '["a.png", "b.png"]'
    assert parse_row(0, good_row(subject_uri=both)).subject_classes == ("mug", "mug")
    each = parse_row(0, good_row(subject_uri=both, subject_class='["mug", " lamp "]'))
    assert each.subject_classes == ("mug", "lamp")
    assert KEYS.of_row(each) != KEYS.of_row(parse_row(0, good_row(subject_uri=both)))


def test_pictures_may_be_mixed_and_only_the_keys_of_mixes_know():
    both = {"subject_uri": '["a.png", "b.png"]'}
    plain = parse_row(0, good_row(**both))
    assert plain.subject_mix == ()
    mixed = parse_row(0, good_row(**both, subject_mix=" [0.25, 0.75] "))
    assert mixed.subject_mix == (0.25, 0.75)
    ends = [parse_row(0, good_row(**both, subject_mix=cell)) for cell in ("[1, 0]", "[1.0, 0.0]", "[0, 1]")]
    edit = parse_row(0, good_row(**both, source_uri="s.png", subject_mix="[0.25, 0.75]"))
    rows = [plain, mixed, *ends, edit, replace(edit, subject_mix=())]
    keys = [KEYS.of_row(row) for row in rows]
    assert keys[2] == keys[3]
    assert len(set(keys)) == len(rows) - 1
    text = json.dumps(
        ["ezigen-item/1", "s", "m", "a", mixed.item_id, ["a.png", "b.png"], "mug", "on a beach", "", mixed.seed, None,
         None, None, [0.25, 0.75]],
        separators=(",", ":"),
    )  # fmt: skip
    assert keys[1] == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
