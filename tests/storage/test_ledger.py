import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ezigen.config import ConfigurationError
from tasks.storage import ResultsLedger, RunOutput
from tasks.storage.keys import words_to_hex

attempted = st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2), st.integers(1, 2))


def strength(numbered_row):
    position, row = numbered_row
    return (row.status == "done", row.finished_at, row.attempts, position)


def test_done_beats_failed_then_the_latest_counts(output, make_row):
    output.write_results("a", 0, [make_row(1), make_row(2, status="failed"), make_row(3, status="failed", second=1)])
    output.write_results("b", 0, [make_row(1, status="failed", second=9), make_row(2, second=5, attempts=2)])
    output.write_results("c", 0, [make_row(3, status="failed", second=2, attempts=2)])
    ledger = ResultsLedger(output)
    rows = {row.row_index: (row.status, row.attempts) for row in ledger.rows()}
    assert rows == {1: ("done", 1), 2: ("done", 2), 3: ("failed", 2)}
    assert words_to_hex(ledger.done_keys().words) == [f"{n:032x}" for n in (1, 2)]
    assert words_to_hex(ledger.failed_keys().words) == [f"{3:032x}"]
    counts = ledger.counts()
    assert (counts.done, counts.failed, counts.failed_by_code) == (2, 1, {"timed_out": 1})


def test_an_empty_ledger(output):
    ledger = ResultsLedger(output)
    assert list(ledger.rows()) == []
    assert (ledger.counts().done, ledger.counts().failed) == (0, 0)
    assert len(ledger.done_keys()) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2), st.integers(1, 2)), max_size=6),
        max_size=4,
    )
)
def test_the_ledger_equals_a_dict(tmp_path_factory, make_row, shards):
    output = RunOutput(str(tmp_path_factory.mktemp("out")))
    stored = []
    for index, shard in enumerate(shards):
        rows = [
            make_row(n, status="done" if done else "failed", second=second, attempts=attempts)
            for n, done, second, attempts in shard
        ]
        output.write_results("run", index, rows)
        stored += rows
    expected = {row.item_key: row for _, row in sorted(enumerate(stored), key=strength)}
    assert {row.item_key: row for row in ResultsLedger(output).rows()} == expected
    assert len(list(ResultsLedger(output).rows())) == len(expected)


def test_rows_by_status_and_columns(output, make_row):
    output.write_results("a", 0, [make_row(1), make_row(2, status="failed", prompt="p", preview=b"x")])
    (row,) = ResultsLedger(output).rows(status="failed", columns=["prompt"])
    assert (row.item_id, row.prompt, row.preview) == ("item 2", "p", None)


def test_a_reader_keeps_its_view_while_shards_are_replaced(output, make_row):
    """Between two reads of one ledger the shards are merged and deleted: no row is lost, doubled or added."""
    for index in range(6):
        output.write_results("a", index, [make_row(index)])
    ledger = ResultsLedger(output)
    rows = ledger.rows()
    first = next(rows)
    merged = [row for row in output.read_result_rows() if row.row_index in (0, 3, 4)]
    output.write_results("b", 0, [*merged, make_row(99)])
    for index in (0, 3, 4):
        (Path(output.root_uri) / f"results/a-{index:06d}.parquet").unlink()
    assert sorted(row.row_index for row in (first, *rows)) == list(range(6))


def test_a_first_look_survives_vanishing_shards(output, make_row, monkeypatch):
    output.write_results("a", 0, [make_row(0)])
    output.write_results("a", 1, [make_row(1)])
    stale = output.list_results()
    (Path(output.root_uri) / "results/a-000001.parquet").unlink()
    output.write_results("b", 0, [make_row(1)])
    listings = [stale]
    monkeypatch.setattr(RunOutput, "list_results", lambda self: listings.pop() if listings else fresh(self))
    assert ResultsLedger(output).counts().done == 2


fresh = RunOutput.list_results


def test_a_damaged_shard_stops_the_plan(output, make_row):
    output.write_results("a", 0, [make_row(0)])
    Path(output.write_results("a", 1, [make_row(1)])).write_bytes(b"PAR1")
    with pytest.raises(ConfigurationError, match=r"a-000001\.parquet"):
        ResultsLedger(output).counts()


def test_measured_costs_count_done_rows(output, make_row):
    cost = {"num_unet_calls": 100, "seconds": 2.0, "image_bytes": 10}
    output.write_results("a", 0, [make_row(1, **cost), make_row(2, **cost), make_row(3, status="failed", **cost)])
    measured = ResultsLedger(output).resolved.measured
    assert (measured.num_images, measured.num_unet_calls, measured.seconds, measured.image_bytes) == (2, 200, 4.0, 20)


def test_many_shards_in_any_order(output, make_row):
    numbers = list(range(300))
    random.Random(0).shuffle(numbers)
    for index in range(0, 300, 30):
        output.write_results("a", index, [make_row(n, second=n) for n in numbers[index : index + 30]])
    assert sorted(row.row_index for row in ResultsLedger(output).rows()) == list(range(300))
