import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.storage.keys import (
    DistinctCounter,
    KeyTable,
    group_starts,
    positions_in_group,
    sort_order,
    words_from_digests,
    words_from_hex,
    words_to_hex,
)

# Few distinct halves, so that keys share their upper 64 bits.
halves = st.sampled_from([0, 1, 2**63, 2**64 - 1])
keys = st.tuples(halves, halves).map(lambda pair: f"{pair[0]:016x}{pair[1]:016x}")


def words(hexes):
    return words_from_hex(pa.array(hexes, pa.string()))


@given(st.lists(keys), st.lists(keys))
def test_table_finds_what_a_dict_finds(known, asked):
    known = sorted(set(known))
    expected = [known.index(key) if key in known else -1 for key in asked]
    assert KeyTable(words(known)).find(words(asked)).tolist() == expected


@given(st.lists(keys))
def test_sorting_and_groups_equal_plain_python(given_keys):
    order = sort_order(words(given_keys))
    assert order.tolist() == sorted(range(len(given_keys)), key=lambda i: (given_keys[i], i))
    in_order = [given_keys[i] for i in order]
    positions = positions_in_group(group_starts(words(in_order)))
    assert positions.tolist() == [in_order[:i].count(key) for i, key in enumerate(in_order)]


@given(st.lists(st.binary(min_size=16, max_size=16)))
def test_digests_and_hex_agree(digests):
    hexes = [digest.hex() for digest in digests]
    assert np.array_equal(words_from_digests(digests), words(hexes))
    assert words_to_hex(words(hexes)) == hexes


def test_a_slice_of_a_column_is_read_from_its_offset():
    column = pa.array([f"{i:032x}" for i in range(5)])
    assert words_from_hex(column.slice(2, 2))[:, 1].tolist() == [2, 3]


@pytest.mark.parametrize("value", ["", "0" * 31, "0" * 33, "g" * 32, "A" * 32, None])
def test_what_is_no_key_is_refused(value):
    with pytest.raises(ValueError, match="item_key"):
        words(["0" * 32, value])


@given(st.lists(st.lists(st.text(max_size=2))))
def test_distinct_counter(batches):
    counter = DistinctCounter()
    for batch in batches:
        counter.add(batch)
    assert counter.count() == len({text for batch in batches for text in batch})
