import hashlib
import os
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ezigen.config import ConfigurationError
from tasks.catalog.results import RESULTS_SCHEMA, ResultRow, from_batch, to_batch
from tasks.storage import RunOutput, RunRecord, new_run_id
from tasks.storage.writing import TEMPORARY_MARK

KEY = "0123456789abcdef" * 2


def full_row(row):
    return replace(
        row, prompt="on a beach", subject_uri="x.png", subject_class="mug", seed=2**63 - 1, image_uri="images/a.png",
        image_sha256="ab", image_bytes=1, width_px=64, height_px=64, num_loops=3, stop_reason="threshold",
        similarities=(0.1, 0.99), scores={"clip_t": 0.3, "dino": None}, num_unet_calls=99, seconds=1.5, worker="w",
        preview=b"\x00\xff", preview_panels=4,
    )  # fmt: skip


def test_rows_survive_storage(output, make_row):
    rows = [full_row(make_row(1)), make_row(2, status="failed")]
    uri = output.write_results("run", 0, rows)
    assert uri == f"{output.root_uri}/results/run-000000.parquet"
    assert list(output.read_result_rows()) == rows


def test_the_schema_has_exactly_the_fields_of_the_row():
    assert {field.name for field in fields(ResultRow)} == set(RESULTS_SCHEMA.names)


def test_columns_and_filters(output, make_row):
    output.write_results("run", 0, [make_row(1), make_row(2, status="failed")])
    batches = output.read_results(["item_id"], filter=pc.field("status") == "failed")
    assert [row for batch in batches for row in batch.to_pylist()] == [{"item_id": "item 2"}]


def test_images_are_named_by_key_alone(output):
    image = output.write_image(KEY, b"png")
    assert (image.uri, image.num_bytes) == (f"images/01/{KEY}.png", 3)
    assert image.sha256 == hashlib.sha256(b"png").hexdigest()
    assert output.read(image.uri) == b"png"
    assert Path(output.uri(image.uri)).read_bytes() == b"png"
    output.write_image(KEY, b"again")
    assert output.read(image.uri) == b"again"


@pytest.mark.parametrize(("image_format", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_an_image_is_named_after_its_format(output, image_format, suffix):
    image = output.write_image(KEY, b"data", image_format)
    assert image.uri == f"images/01/{KEY}.{suffix}"
    assert output.read(image.uri) == b"data"


@pytest.mark.parametrize("key", ["../../etc/passwd", "", KEY.upper(), KEY[:-1], KEY + "\n"])
def test_what_is_no_key_names_no_image(output, key):
    with pytest.raises(ValueError, match="not an item key"):
        output.image_path(key)


@pytest.mark.parametrize("run_id", ["../x", "", "a/b", "x" * 65])
def test_what_is_no_run_id_names_no_shard(output, make_row, run_id):
    with pytest.raises(ValueError, match="not a run id"):
        output.write_results(run_id, 0, [make_row(1)])


def test_an_empty_output_has_no_rows_and_no_run(output):
    assert list(output.read_results()) == []
    assert output.read_run() is None


def test_leftovers_and_foreign_files_are_no_shards(output, make_row):
    output.write_results("run", 0, [make_row(1)])
    folder = Path(output.root_uri) / "results"
    (folder / f"{TEMPORARY_MARK}0.parquet").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    (folder / "folder.parquet").mkdir()
    assert len(list(output.read_result_rows())) == 1


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "foreign", "bad key"])
def test_a_damaged_shard_is_named_with_the_remedy(output, make_row, damage):
    path = Path(output.write_results("run", 0, [make_row(1)]))
    data = path.read_bytes()
    if damage == "foreign":
        pq.write_table(pa.table({"a": [1]}), path)
    elif damage == "bad key":
        pq.write_table(pa.Table.from_batches([to_batch([replace(make_row(1), item_key="x")])]), path)
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "garbage": bytes(reversed(data)), "empty": b""}[damage])
    with pytest.raises(ConfigurationError, match="delete it") as raised:
        list(output.read_results())
    assert str(path) in str(raised.value)


def test_shards_of_other_versions_are_read(output, make_row):
    path = Path(output.write_results("run", 0, [full_row(make_row(1))]))
    table = pq.read_table(path).drop_columns(["preview", "scores"]).append_column("new", pa.array([1]))
    pq.write_table(table, path)
    (batch,) = output.read_results()
    (row,) = from_batch(batch)
    assert row == replace(full_row(make_row(1)), preview=None, scores={})


def test_an_output_travels_to_another_process(output, make_row):
    output.write_results("run", 0, [make_row(1)])
    code = "import pickle, sys; print(len(list(pickle.load(sys.stdin.buffer).read_result_rows())))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(output), capture_output=True, check=True)
    assert done.stdout.strip() == b"1"


def test_a_killed_writer_leaves_the_old_object_whole(tmp_path):
    """A process that rewrites one object for ever is killed many times: every read sees one whole version."""
    code = (
        "import sys; from tasks.storage import RunOutput\n"
        "output = RunOutput(sys.argv[1])\n"
        "while True:\n"
        "    for letter in b'ab': output.write('run.json', bytes([letter]) * 3_000_000); print(flush=True)"
    )
    output = RunOutput(str(tmp_path))
    for pause in range(4):
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(pause + 1):
            writer.stdout.readline()
        writer.kill()
        writer.wait()
        data = output.read("run.json")
        assert len(data) == 3_000_000
        assert len(set(data)) == 1


def test_a_failed_write_leaves_nothing_behind(output, monkeypatch):
    def no_space(_descriptor):
        raise OSError(28, "No space left on device")

    output.write("run.json", b"old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        output.write("run.json", b"new")
    assert output.read("run.json") == b"old"
    assert [path.name for path in Path(output.root_uri).iterdir()] == ["run.json"]


def test_a_name_of_the_longest_length_can_be_written(output):
    output.write("x" * 255, b"data")
    assert output.read("x" * 255) == b"data"


def test_run_records_keep_their_history(output):
    record = RunRecord("one", "running", "2026-01-01T00:00:00+00:00", inputs={"limit": 3})
    output.write_run(record.after(output.read_run()))
    assert output.read_run() == record
    output.write_run(record.closed("finished", {"done": 3}))
    second = RunRecord("two", "running", "2026-01-02T00:00:00+00:00").after(output.read_run())
    (summary,) = second.history
    assert (summary.run_id, summary.state, summary.counts) == ("one", "finished", {"done": 3})
    output.write_run(second)
    third = RunRecord("three", "running", "2026-01-03T00:00:00+00:00").after(output.read_run())
    assert [(s.run_id, s.state) for s in third.history] == [("one", "finished"), ("two", "failed")]


def test_run_json_of_a_newer_version_is_read(output):
    output.write("run.json", b'{"run_id": "a", "state": "finished", "started_at": "2026-01-01T00:00:00+00:00", "x": 1}')
    assert output.read_run().run_id == "a"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"run_id": 1, "history": [1]}'])
def test_a_damaged_run_json_is_named(output, content):
    output.write("run.json", content)
    with pytest.raises(ConfigurationError, match=r"run\.json"):
        output.read_run()


def test_run_ids_name_shards():
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(len(run_id) < 64 for run_id in ids)
