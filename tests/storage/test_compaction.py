import os
import time
from pathlib import Path

import pytest

from ezigen.config import ConfigurationError
from tasks.storage import LeaseLost, ResultsLedger, RunOutput, compact_results, compaction, remove_leftovers
from tasks.storage.writing import TEMPORARY_MARK


def allow():
    """A lease that is held."""


@pytest.fixture(params=["folder", "memory"])
def output(request, tmp_path):
    return RunOutput(str(tmp_path / "out") if request.param == "folder" else f"memory:/{tmp_path}")


def fill(output, make_row, num_shards=20):
    for index in range(num_shards):
        retried = make_row(1000 + index % 3, status="failed", second=index, attempts=index + 1)
        output.write_results("run", index, [make_row(index, preview=os.urandom(100)), retried])


def resolved(output):
    return {row.item_key: row for row in ResultsLedger(output).rows()}


def test_merging_changes_no_resolved_row(output, make_row):
    fill(output, make_row)
    before = resolved(output)
    summary = compact_results(output, allow)
    assert (summary.num_merged, summary.num_written, summary.num_rows_dropped) == (20, 1, 17)
    assert len(output.list_results()) == 1
    assert resolved(output) == before
    assert len(list(output.read_result_rows())) == len(before)
    assert compact_results(output, allow).num_merged == 0


def test_groups_keep_to_the_target(output, make_row):
    fill(output, make_row)
    sizes = [shard.num_bytes for shard in output.list_results()]
    before = resolved(output)
    compact_results(output, allow, target_bytes=8 * max(sizes))
    assert 2 <= len(output.list_results()) <= 6
    assert resolved(output) == before


def test_few_shards_and_large_ones_are_left_alone(output, make_row):
    fill(output, make_row, num_shards=15)
    assert compact_results(output, allow).num_merged == 0
    assert compact_results(output, allow, min_shards=2, target_bytes=100).num_merged == 0
    assert len(output.list_results()) == 15


def test_a_crash_at_any_point_loses_and_doubles_nothing(output, make_row, monkeypatch):
    """The process dies before the write, or after any number of deletions; then everything starts again."""
    fill(output, make_row)
    before = resolved(output)

    def crash_after(num_deletions):
        delete = compaction._delete

        def partly(output, group):
            delete(output, group[:num_deletions])
            raise KeyboardInterrupt

        return partly

    for num_deletions in (0, 1, 7):
        with monkeypatch.context() as patch:
            patch.setattr(compaction, "_delete", crash_after(num_deletions))
            with pytest.raises(KeyboardInterrupt):
                compact_results(output, allow, min_shards=2)
        assert resolved(output) == before
    compact_results(output, allow, min_shards=2)
    assert len(output.list_results()) == 1
    assert resolved(output) == before


def test_a_lost_lease_deletes_nothing(output, make_row):
    fill(output, make_row)

    def lost():
        raise LeaseLost("gone")

    with pytest.raises(LeaseLost):
        compact_results(output, lost)
    assert len(output.list_results()) == 20


def test_a_damaged_shard_deletes_nothing(output, make_row):
    fill(output, make_row)
    output.write("results/run-000019.parquet", b"PAR1")
    with pytest.raises(ConfigurationError, match=r"run-000019\.parquet"):
        compact_results(output, allow)
    assert len(output.list_results()) == 20


def test_a_reader_that_began_before_a_merge_sees_every_row_once(output, make_row):
    fill(output, make_row)
    ledger = ResultsLedger(output)
    rows = ledger.rows()
    seen = [next(rows).item_key]
    compact_results(output, allow)
    seen += [row.item_key for row in rows]
    assert sorted(seen) == sorted(resolved(output))


def test_leftovers_of_killed_writers_are_removed(tmp_path, make_row):
    output = RunOutput(str(tmp_path))
    output.write_results("run", 0, [make_row(1)])
    output.write_image("ab" * 16, b"png")
    old = time.time() - 7200
    for folder in (".", "results", "images/ab"):
        for name, age in (("old", old), ("new", time.time())):
            leftover = tmp_path / folder / f"{TEMPORARY_MARK}{name}"
            leftover.touch()
            os.utime(leftover, (age, age))
    assert remove_leftovers(output) == 3
    assert remove_leftovers(output) == 0
    assert remove_leftovers(output, older_than_s=-1) == 3
    assert len(list(output.read_result_rows())) == 1
    assert Path(output.uri(output.image_path("ab" * 16))).exists()
    assert remove_leftovers(RunOutput(str(tmp_path / "nothing"))) == 0
