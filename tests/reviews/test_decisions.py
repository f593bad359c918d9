"""Decisions: what is stored, which one counts, what is refused, what `ezigen results` lists of them."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ezigen.config import ConfigurationError, ErrorCode
from ezigen.images import encode_png
from flows.command_line import app
from tasks.reviews import Reviews, apply_decisions
from tasks.storage import RunOutput
from tests.reports.rows import make_row
from tests.studies.sets import paint, write_run

NOW = datetime.now(UTC)


@pytest.fixture
def output(tmp_path) -> RunOutput:
    output = write_run(tmp_path / "out", "secretmethod", range(4))
    output.write_results("20261123T000000Z-000000", 0, [make_row(9, failed=ErrorCode.TIMED_OUT)])
    return output


def write_decisions(output: RunOutput, reviewer: str, states: dict[int, str], minutes: float = 0, **changes) -> str:
    """states: by index "approved" or "rejected", decided so many minutes from now."""
    hashes = {row.item_id: row.image_sha256 for row in output.read_result_rows()}
    decisions = [
        {
            "item_key": make_row(index).item_key,
            "item_id": make_row(index).item_id,
            "image_sha256": hashes.get(make_row(index).item_id) or "0" * 64,
            "decision": state,
            "decided_at": (NOW + timedelta(minutes=minutes)).isoformat(),
            "note": f"note of {reviewer}",
        }
        | changes
        for index, state in states.items()
    ]
    folder = Path(output.root_uri).parent
    path = folder / f"decisions-{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps({"format": "ezigen-review/1", "reviewer": reviewer, "decisions": decisions}))
    return str(path)


def states(output: RunOutput) -> dict[int, str]:
    reviews = Reviews.of(output)
    rows = {row.item_key: row for row in output.read_result_rows() if row.status == "done"}
    return {row.row_index: reviews.state(row.item_key, row.image_sha256) for row in rows.values()}


def test_stored_once_under_a_digest_of_what_it_says(output):
    file = write_decisions(output, "Ann", {0: "approved", 1: "rejected"})
    applied = apply_decisions(output, file)
    assert (applied.reviewer, applied.num_approved, applied.num_rejected, applied.num_overruled) == ("Ann", 1, 1, 0)
    data = Path(applied.uri).read_bytes()
    assert Path(applied.uri).name == f"{hashlib.sha256(data).hexdigest()[:32]}.json"
    assert json.loads(data)["decisions"][0]["note"] == "note of Ann"
    assert apply_decisions(output, file) == applied
    assert len(list((Path(output.root_uri) / "review").iterdir())) == 1
    assert states(output) == {0: "approved", 1: "rejected", 2: "unreviewed", 3: "unreviewed"}


def test_the_later_decision_counts_whatever_is_applied_last(output):
    late = write_decisions(output, "Ann", {0: "rejected", 1: "approved"}, minutes=5)
    early = write_decisions(output, "Ben", {0: "approved", 2: "approved"})
    apply_decisions(output, late)
    applied = apply_decisions(output, early)
    assert applied.num_overruled == 1
    assert states(output) == {0: "rejected", 1: "approved", 2: "approved", 3: "unreviewed"}
    apply_decisions(output, write_decisions(output, "Ben", {0: "approved"}, minutes=9))
    assert states(output)[0] == "approved"


def test_a_rejection_of_the_same_moment_counts(output):
    for reviewer, state in (("Ann", "rejected"), ("Zoe", "approved")):
        apply_decisions(output, write_decisions(output, reviewer, {0: state}))
    assert states(output)[0] == "rejected"


def test_an_image_that_is_made_again_is_not_reviewed(output):
    apply_decisions(output, write_decisions(output, "Ann", {0: "approved", 1: "approved"}))
    old = write_decisions(output, "Ben", {0: "approved", 1: "approved"})
    row = next(row for row in output.read_result_rows() if row.row_index == 0)
    stored = output.write_image(row.item_key, encode_png(paint("otherbaseline", 0)))
    later = row.finished_at + timedelta(hours=1)
    output.write_results("later", 0, [replace(row, image_sha256=stored.sha256, finished_at=later)])
    assert Reviews.of(output).state(row.item_key, stored.sha256) == "unreviewed"
    with pytest.raises(ConfigurationError, match=r"1 of 2 decisions do not fit .*'teapot-0000' was made again since"):
        apply_decisions(output, old)


def test_images_that_are_not_those_that_were_looked_at(output):
    file = write_decisions(output, "Ann", {0: "approved", 1: "approved", 2: "approved"})
    rows = {row.row_index: row for row in output.read_result_rows()}
    (Path(output.root_uri) / rows[0].image_uri).write_bytes(b"something else")
    (Path(output.root_uri) / rows[1].image_uri).unlink()
    with pytest.raises(ConfigurationError) as refused:
        apply_decisions(output, file)
    assert "the image of 'teapot-0000' was changed since" in str(refused.value)
    assert "the image of 'running-shoe-0001' is gone" in str(refused.value)
    assert "'desk-lamp-0002'" not in str(refused.value)
    assert states(output) == dict.fromkeys(range(4), "unreviewed")


def test_a_file_that_is_nested_without_end_is_no_file_of_decisions(output, tmp_path):
    (tmp_path / "deep.json").write_text('{"format": "ezigen-review/1", "more": ' + "[" * 1_000_000)
    with pytest.raises(ConfigurationError, match="is not a file of decisions"):
        apply_decisions(output, str(tmp_path / "deep.json"))


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (7, {}, "is no item with an image"),
        (9, {}, "is no item with an image"),
        (0, {"item_id": "another"}, "'another' is no item"),
        (0, {"image_sha256": "1" * 64}, "was made again since"),
        (0, {"decision": "perhaps"}, "is not a file of decisions"),
        (0, {"decided_at": "yesterday"}, "is not a file of decisions"),
        (0, {"decided_at": "2026-11-22T03:12:05"}, "without a time zone"),
        (0, {"decided_at": "2999-01-01T00:00:00Z"}, "made in the future"),
        (0, {"note": "x" * 2001}, "shorten it"),
    ],
)
def test_what_does_not_fit_is_refused(output, index, changes, message):
    file = write_decisions(output, "Ann", {index: "approved"}, **changes)
    with pytest.raises(ConfigurationError, match=message):
        apply_decisions(output, file)
    assert not (Path(output.root_uri) / "review").exists()


def test_damaged_files_are_named(output, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ConfigurationError, match=r"broken\.json is not a file of decisions"):
        apply_decisions(output, str(broken))
    for reviewer, message in (("", "printable name"), ("a\nb", "printable name")):
        with pytest.raises(ConfigurationError, match=message):
            apply_decisions(output, write_decisions(output, reviewer, {0: "approved"}))
    with pytest.raises(ConfigurationError, match="holds no decisions"):
        apply_decisions(output, write_decisions(output, "Ann", {}))
    twice = json.loads(Path(write_decisions(output, "Ann", {0: "approved"})).read_text())
    twice["decisions"] *= 2
    broken.write_text(json.dumps(twice))
    with pytest.raises(ConfigurationError, match="stands there twice"):
        apply_decisions(output, str(broken))
    stored = apply_decisions(output, write_decisions(output, "Ann", {0: "approved"})).uri
    Path(stored).write_text("[]")
    with pytest.raises(ConfigurationError, match=r"review/[0-9a-f]{32}\.json is not a file of decisions"):
        Reviews.of(output)


# ---- commands


def ezigen(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def listed(output, *options) -> list[int]:
    told = ezigen("results", output.root_uri, "--format", "jsonl", *options)
    assert told.exit_code == 0, told.output
    return [int(json.loads(line)["item_id"][-4:]) for line in told.stdout.splitlines()]


def test_results_lists_what_a_review_decided(output):
    told = ezigen("review", "apply", output.root_uri, write_decisions(output, "Ann", {0: "approved", 1: "rejected"}))
    assert told.exit_code == 0, told.output
    assert "Ann: 1 approved, 1 rejected" in told.output
    assert listed(output, "--approved") == [0]
    assert listed(output, "--rejected") == [1]
    assert listed(output, "--unreviewed") == [2, 3]
    assert listed(output) == [0, 1, 2, 3, 9]
    assert listed(output, "--failed") == [9]
    for wrong in (("--approved", "--rejected"), ("--approved", "--failed"), ("--unreviewed", "--code", "timed_out")):
        assert ezigen("results", output.root_uri, *wrong).exit_code == 2


def test_apply_says_what_is_refused(output):
    told = ezigen("review", "apply", output.root_uri, write_decisions(output, "Ann", {7: "approved"}))
    assert told.exit_code == 2
    assert "Nothing was stored" in " ".join(told.output.split())


def test_on_an_object_store(tmp_path):
    output = RunOutput("memory://reviews/out")
    row = make_row(0, paint=None)
    stored = output.write_image(row.item_key, encode_png(paint("secretmethod", 0)))
    output.write_results(row.run_id, 0, [replace(row, image_uri=stored.uri, image_sha256=stored.sha256)])
    decision = {"item_key": row.item_key, "item_id": row.item_id, "image_sha256": stored.sha256}
    decision |= {"decision": "rejected", "decided_at": NOW.isoformat()}
    file = tmp_path / "decisions.json"
    file.write_text(json.dumps({"format": "ezigen-review/1", "reviewer": "Ann", "decisions": [decision]}))
    assert apply_decisions(output, str(file)).uri.startswith("memory://reviews/out/review/")
    assert states(output) == {0: "rejected"}
