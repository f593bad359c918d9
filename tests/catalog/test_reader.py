import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ezigen.config import ConfigurationError
from tasks.datasets.catalogs import BROKEN, CATALOG_SCHEMA, read_catalog
from tests.catalog.conftest import good_row

HEADER = "item_id,subject_uri,subject_class,prompt"


def read(path):
    batches = list(read_catalog(str(path)))
    assert all(batch.schema == CATALOG_SCHEMA for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.fixture
def write(tmp_path):
    def write(content, name="catalog.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_csv_quotes_line_breaks_blank_lines_and_bom(write):
    path = write("\ufeff" + HEADER + ',seed\r\n\r\na,x.png,mug,"on a\nbeach, ""now""",7\r\n,,,,\r\nb,y.png,,snow,\r\n')
    first, second = read(path)
    assert (first["item_id"], first["prompt"], first["seed"]) == ("a", 'on a\nbeach, "now"', "7")
    assert (second["subject_class"], second["seed"], second[BROKEN]) == (None, None, None)


def test_csv_broken_lines_are_rows_with_a_reason(write):
    rows = read(write(f'{HEADER}\na,x.png,mug\nb,x.png,mug,p,extra\nc,"x".png,mug,p\nd,x.png,mug,p\n'))
    assert [row["item_id"] for row in rows] == [None, None, None, "d"]
    assert rows[0][BROKEN] == "line 2 has 3 cells, the header has 4"
    assert rows[1][BROKEN] == "line 3 has 5 cells, the header has 4"
    assert rows[2][BROKEN].startswith("line 4 is not valid CSV")


def test_csv_bytes_that_are_not_utf8_cost_one_row(write):
    rows = read(write(f"{HEADER}\na,x.png,mug,caf\xe9\nb,y.png,mug,ok\n".encode("latin-1")))
    assert "UTF-8" in rows[0][BROKEN]
    assert rows[1]["item_id"] == "b"


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ("", "c.csv", "empty"),
        (HEADER + "\n", "c.csv", "no rows"),
        ("", "c.jsonl", "no rows"),
        ("\n\n", "c.jsonl", "no rows"),
        ("item_id,subject_uri,subject_class,promt\na,b,c,d\n", "c.csv", "'prompt' is missing.*did you mean 'promt'"),
        ("item_id,subject_uri,subject_class,Prompt\na,b,c,d\n", "c.csv", "did you mean 'Prompt'"),
        ("item_id;subject_uri;subject_class;prompt\na;b;c;d\n", "c.csv", "separated by commas"),
        (HEADER + ",prompt\na,b,c,d,e\n", "c.csv", "appears twice"),
        ('{"item_id": "a", "subject_uri": "b", "prompt": "c"}\n', "c.jsonl", "'subject_class' is missing"),
        (HEADER + '\na,"x.png,mug,p\nb,x.png,mug,p\n', "c.csv", "quote opened on line 2 is never closed"),
        (HEADER + '\na,x,mug,p\nb,"' + "x" * 200_000 + "\n", "c.csv", "quote opened on line 3"),
        (HEADER + "\na,x,mug,p\n" + "x" * (1 << 20), "c.csv", "line 3 has more than 1,048,576 characters"),
        (HEADER + "\n" + '"a\n",' * (1 << 18), "c.csv", "line 209717 has more than 1,048,576 characters"),
        ("x," * (1 << 20), "c.csv", "line 1 has more than 1,048,576 characters"),
        (HEADER.encode("utf-16"), "c.csv", "UTF-16"),
        (b"PAR1 not really", "c.parquet", "cannot be read"),
        ("x", "c.xlsx", "suffix"),
        ("x", "c", "suffix"),
    ],
)
def test_a_catalog_that_cannot_be_used_is_an_error_that_names_it(write, content, name, words):
    path = write(content, name)
    with pytest.raises(ConfigurationError, match=f"(?s){words}") as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_absent_folder_and_forbidden_catalogs(tmp_path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        read(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigurationError, match=r"folder\.csv"):
        read(tmp_path / "folder.csv")
    with pytest.raises(ConfigurationError, match="scheme 'ftp' is not supported"):
        read("ftp://host/catalog.csv")


def test_jsonl_lines_that_are_no_objects_are_rows_with_a_reason(write):
    good = {"item_id": 12, "subject_uri": ["x.png", "y.png"], "subject_class": None, "prompt": "é", "seed": 7}
    lines = [
        json.dumps(good).encode(),
        b"{broken",
        b"[1, 2]",
        b'{"item_id": "a", "prompt": ["x"]}',
        b'{"item_id": 1.5}',
        b'{"item_id": true}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "caf\xe9"}',
        b"[" * 100_000,
        b'{"prompt": "' + b"x" * (2 << 20) + b'"}',
        b'{"seed": ' + b"9" * 10_000 + b"}",
        json.dumps({**good, "seed": float("nan"), "subject_uri": "z.png"}).encode(),
    ]
    rows = read(write(b"\n".join(lines), "c.jsonl"))
    assert [row[BROKEN] is None for row in rows] == [True, *[False] * 10, True]
    assert rows[0] | {BROKEN: None} == dict.fromkeys(CATALOG_SCHEMA.names) | {
        "item_id": "12", "subject_uri": '["x.png","y.png"]', "prompt": "é", "seed": "7",
    }  # fmt: skip
    assert rows[1][BROKEN].startswith("line 2 is not JSON")
    assert rows[9][BROKEN].startswith("line 10 has more than")
    assert (rows[11]["seed"], rows[11]["subject_uri"]) == ("nan", "z.png")


def test_parquet_types(tmp_path):
    columns = {
        "item_id": pa.array([1, 2]),
        "subject_uri": pa.array([["x.png"], ["y.png", "z.png"]]),
        "subject_class": pa.array(["mug", "bag"]).dictionary_encode(),
        "prompt": pa.array(["a", "b"], pa.large_string()),
        "negative_prompt": pa.array([float("nan"), 0.5]),
        "seed": pa.array([7.0, float("nan")]),
        "mask_uri": pa.nulls(2),
    }
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    first, second = read(tmp_path / "c.parquet")
    assert (first["item_id"], first["subject_uri"], first["seed"], first[BROKEN]) == ("1", "x.png", "7", None)
    assert (second["subject_uri"], second["seed"]) == ('["y.png","z.png"]', "nan")
    assert second[BROKEN] == "negative_prompt is a number with a fraction, not a text"


def test_a_long_cell_that_many_parquet_rows_share_is_not_unpacked(tmp_path):
    """50 kB that would be 40 GB of text."""
    num_rows = 20_000
    prompt = pa.DictionaryArray.from_arrays(
        pa.array([1, *[0] * (num_rows - 2), 1], pa.int32()), pa.array(["x" * 2_000_000, "fine"])
    )
    same = {name: pa.array(["a"] * num_rows) for name in ("item_id", "subject_uri", "subject_class")}
    pq.write_table(pa.table({**same, "prompt": prompt}), tmp_path / "c.parquet", compression="zstd")
    assert (tmp_path / "c.parquet").stat().st_size < 50_000
    rows = read(tmp_path / "c.parquet")
    assert len(rows) == num_rows
    assert [row["prompt"] for row in rows if row[BROKEN] is None] == ["fine", "fine"]
    assert rows[1][BROKEN] == "prompt has more than 65,536 bytes"


def test_parquet_text_that_is_not_utf8_costs_one_row(tmp_path):
    same = {name: ["a", "b", "c"] for name in ("item_id", "subject_uri", "subject_class")}
    pq.write_table(pa.table({**same, "prompt": ["x", "cafe", None]}), tmp_path / "c.parquet", compression="none")
    data = (tmp_path / "c.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(data.replace(b"cafe", b"caf\xe9"))
    rows = read(tmp_path / "c.parquet")
    assert [row["prompt"] for row in rows] == ["x", None, None]
    assert [row[BROKEN] and "UTF-8" in row[BROKEN] for row in rows] == [None, True, None]


def test_parquet_column_of_a_wrong_type_is_an_error(tmp_path):
    table = pa.table({"item_id": ["a"], "subject_uri": ["x"], "subject_class": ["c"], "prompt": [True]})
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(ConfigurationError, match="column prompt has the type bool"):
        read(tmp_path / "c.parquet")


def test_unknown_columns_are_named_once_with_a_suggestion(write, caplog):
    path = write(HEADER + ",negativ_prompt,price\na,x,c,p,n,1\nb,x,c,p,n,1\n")
    with caplog.at_level(logging.WARNING):
        read(path)
    (record,) = caplog.records
    assert "'negativ_prompt' (did you mean 'negative_prompt'?), 'price'" in record.getMessage()


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_shares_may_be_a_list(write_catalog, name):
    rows = [good_row(0, subject_mix=[0.25, 0.75]), good_row(1, subject_mix=None)]
    found = read(write_catalog(rows, name))
    assert [row["subject_mix"] for row in found] == ["[0.25, 0.75]", None]
    assert [row[BROKEN] for row in found] == [None, None]
