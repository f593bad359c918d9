import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ezigen.config import CatalogInputs, ConfigurationError, EditConfig, ErrorCode, ItemError, LoopConfig, SamplerConfig
from tasks.catalog.estimates import estimate, expected_unet_calls
from tasks.catalog.plan import plan_catalog
from tasks.catalog.results import ResultRow, failed_row, refused_row
from tasks.storage import ResultsLedger, RunOutput
from tasks.storage.ledger import Measured
from tests.catalog.conftest import good_row

SAMPLER = SamplerConfig()


@pytest.fixture
def plan(tmp_path):
    def plan(catalog, sampler=SAMPLER, progress=None, **inputs):
        inputs = CatalogInputs(catalog_uri=str(catalog), output_uri=str(tmp_path / "out"), **inputs)
        return plan_catalog(inputs, sampler, "model", "adapter", progress)

    return plan


@pytest.fixture
def run(tmp_path):
    """Does what a plan says without a model: items whose id is in `fail` fail."""
    shard = iter(range(1000))

    def run(plan, fail=()):
        items = list(plan.items())
        rows = [refused_row(refusal, run_id="run") for refusal in plan.refusals()]
        for item in items:
            if item.row.item_id in fail:
                rows.append(failed_row(item, ItemError(ErrorCode.TIMED_OUT, "slow"), run_id="run"))
            else:
                rows.append(done_row(item))
        RunOutput(str(tmp_path / "out")).write_results("run", next(shard), rows)
        return [item.row.item_id for item in items]

    return run


def done_row(item):
    return ResultRow(
        item_key=item.item_key, item_id=item.row.item_id, row_index=item.row.index, run_id="run", status="done",
        attempts=item.attempts + 1, finished_at=datetime.now(UTC), num_unet_calls=10, seconds=5.0, image_bytes=1000,
    )  # fmt: skip


ROWS = [
    good_row(0),
    good_row(1, seed=7, negative_prompt="blur"),
    good_row(2, prompt="x" * 20_000),
    good_row(1, prompt="again"),
    good_row(1, prompt="again"),
    good_row(5, subject_uri="/etc/passwd"),
    good_row(6, subject_uri="ftp://host/x.png"),
    good_row(7, item_id="../../7"),
    good_row(8, item_id=None),
    good_row(8, item_id=None),
]


def states(plan):
    counts = plan.counts
    return {name: getattr(counts, name) for name in ("to_do", "done", "failed_before", "refused", "postponed")}


def test_a_first_plan(plan, write_catalog, tmp_path):
    seen = []
    planned = plan(write_catalog(ROWS), progress=seen.append)
    assert states(planned) == {"to_do": 3, "done": 0, "failed_before": 0, "refused": 7, "postponed": 0}
    assert planned.counts.refused_by_code == {
        ErrorCode.ROW_INVALID: 3, ErrorCode.DUPLICATE_ID: 2, ErrorCode.LOCATION_DENIED: 1,
        ErrorCode.LOCATION_UNKNOWN_SCHEME: 1,
    }  # fmt: skip
    assert [(item.row.index, item.row.item_id, item.attempts) for item in planned.items()] == [
        (0, "item 0", 0), (1, "item 1", 0), (7, "../../7", 0),
    ]  # fmt: skip
    refusals = list(planned.refusals())
    assert [refusal.index for refusal in refusals] == [2, 3, 4, 5, 6, 8, 9]
    assert len({refusal.item_key for refusal in refusals}) == 7
    assert refusals[0].message.startswith("prompt has 20,000 characters")
    assert [refusal.message for refusal in refusals[1:3]] == [
        "row 4 has the item_id of row 2; every row needs its own.",
        "row 5 has the item_id of row 2; every row needs its own.",
    ]
    assert len(refusals[0].prompt) == 500
    assert seen == [10]
    assert (planned.num_prompts, planned.num_subjects) == (2, 3)
    assert not (tmp_path / "out").exists()


def test_running_again_does_the_missing_work_only(plan, run, write_catalog, tmp_path):
    catalog = write_catalog(ROWS)
    assert run(plan(catalog), fail={"item 1"}) == ["item 0", "item 1", "../../7"]
    again = plan(catalog)
    assert states(again) == {"to_do": 0, "done": 2, "failed_before": 8, "refused": 0, "postponed": 0}
    assert again.counts.failed_before_by_code[ErrorCode.TIMED_OUT] == 1
    assert list(again.items()) == []
    assert list(again.refusals()) == []
    retried = plan(catalog, retry_failed=True)
    assert states(retried) == {"to_do": 1, "done": 2, "failed_before": 0, "refused": 7, "postponed": 0}
    assert [(item.row.item_id, item.attempts) for item in retried.items()] == [("item 1", 1)]
    assert {refusal.attempts for refusal in retried.refusals()} == {1}
    run(retried)
    rows = list(ResultsLedger(RunOutput(str(tmp_path / "out"))).rows())
    assert len(rows) == len(ROWS)
    assert sorted(row.attempts for row in rows) == [1, 1, 2, 2, 2, 2, 2, 2, 2, 2]


def test_an_edited_catalog_does_the_changed_rows(plan, run, write_catalog):
    run(plan(write_catalog([good_row(n) for n in range(4)])))
    edited = [good_row(9), good_row(3), good_row(1, prompt="new"), good_row(0)]
    assert run(plan(write_catalog(edited))) == ["item 9", "item 1"]


def test_refusals_stay_known_when_rows_are_added_above_them(plan, run, write_catalog):
    run(plan(write_catalog(ROWS)))
    later = plan(write_catalog([good_row(n) for n in range(20, 25)] + ROWS))
    assert states(later) == {"to_do": 5, "done": 3, "failed_before": 7, "refused": 0, "postponed": 0}


def test_a_repaired_row_is_done(plan, run, write_catalog):
    run(plan(write_catalog([good_row(0, seed="nan")])))
    assert run(plan(write_catalog([good_row(0, seed="5")]))) == ["item 0"]


def test_another_sampler_is_other_work(plan, run, write_catalog):
    catalog = write_catalog([good_row(0)])
    run(plan(catalog))
    assert plan(catalog).counts.to_do == 0
    assert plan(catalog, sampler=SamplerConfig(num_steps=20)).counts.to_do == 1


def test_limit_leaves_the_rest_for_later(plan, run, write_catalog):
    catalog = write_catalog([good_row(n) for n in range(5)])
    limited = plan(catalog, limit=2)
    assert states(limited) == {"to_do": 2, "done": 0, "failed_before": 0, "refused": 0, "postponed": 3}
    assert run(limited) == ["item 0", "item 1"]
    assert run(plan(catalog, limit=2)) == ["item 2", "item 3"]
    assert run(plan(catalog, limit=2)) == ["item 4"]


def test_every_format_gives_the_same_items(plan, write_catalog):
    rows = [
        good_row(0, seed="7", subject_uri=["a.png", "b.png"]),
        good_row(1, prompt='a "quoted", \\ größer prompt\nover two lines', seed=None, subject_uri=["d.png"]),
        good_row(2, subject_class="", seed="9", subject_uri=["c.png"]),
    ]
    csv = [list(plan(write_catalog(rows, "c.csv")).items())]
    others = [list(plan(write_catalog(rows, name)).items()) for name in ("c.jsonl", "c.parquet")]
    shuffled = [dict(reversed(row.items())) | {"unknown": 1} for row in rows]
    others.append(list(plan(write_catalog(shuffled, "d.jsonl")).items()))
    assert all(items == csv[0] for items in others)
    assert len(csv[0]) == 3


def test_a_catalog_that_moves_with_its_pictures_keeps_its_keys(plan, write_catalog, tmp_path):
    path = write_catalog(ROWS)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere/c.jsonl")
    keys = [item.item_key for item in plan(moved).items()]
    assert keys == [item.item_key for item in plan(write_catalog(ROWS)).items()]


def test_a_catalog_that_changes_before_its_items_are_read_is_an_error(plan, write_catalog):
    planned = plan(write_catalog([good_row(0)]))
    write_catalog([good_row(1), good_row(2)])
    with pytest.raises(ConfigurationError, match="changed"):
        next(planned.items())


def test_a_catalog_that_changes_under_the_first_pass_is_an_error(plan, write_catalog):
    catalog = write_catalog([good_row(0)])
    with pytest.raises(ConfigurationError, match="changed"):
        plan(catalog, progress=lambda _: catalog.write_text("{}\n"))


def test_allowed_roots_open_other_folders(plan, write_catalog, tmp_path):
    rows = [good_row(0, subject_uri="/elsewhere/x.png"), good_row(1, subject_uri="near.png")]
    catalog = write_catalog(rows)
    assert [r.index for r in plan(catalog).refusals()] == [0]
    assert [r.index for r in plan(catalog, allowed_roots=["/elsewhere"]).refusals()] == [1]
    assert plan(catalog, allowed_roots=["/elsewhere", str(tmp_path)]).counts.to_do == 2


def test_the_description_is_for_people(plan, write_catalog):
    text = dict(plan(write_catalog(ROWS), limit=1).describe())
    assert text["rows"] == "10"
    assert text["refused: row_invalid"] == "3"
    assert text["left for later runs (limit)"] == "2"
    assert text["worker hours"] == "not measured yet"


def test_what_was_measured_goes_into_the_estimate(plan, run, write_catalog):
    rows = [good_row(n) for n in range(3)]
    run(plan(write_catalog(rows[:2])))
    cost = plan(write_catalog(rows)).estimate
    calls = expected_unet_calls(SAMPLER)
    assert cost.image_bytes == 1000
    assert cost.worker_hours == pytest.approx(calls * 0.5 / 3600)


def test_expected_calls_count_branches_loops_and_the_subject():
    assert expected_unet_calls(SAMPLER) == pytest.approx(1 + 2 * (50 + 6.67 * 20))
    fixed = LoopConfig(stop="fixed", num_loops=2)
    assert expected_unet_calls(SamplerConfig(guidance_scale=1.0, loops=fixed)) == 1 + 50 + 2 * 20
    assert expected_unet_calls(SamplerConfig(mode="text_only")) == 100
    assert expected_unet_calls(SamplerConfig(mode="decoupled")) == 101
    half = SamplerConfig(guidance_min_timestep=201, loops=fixed)  # 10 of the 20 timesteps 381 ... 1 are below
    assert expected_unet_calls(half) == 1 + 60 + 3 * 30
    few = LoopConfig(min_loops=0, max_loops=4)
    assert expected_unet_calls(SamplerConfig(loops=few)) == 1 + 2 * (50 + 4 * 20)
    assert estimate(10, SAMPLER, Measured(), seconds_per_call=3.6).worker_hours == pytest.approx(
        0.01 * expected_unet_calls(SAMPLER)
    )


def test_edits_are_planned_beside_images(plan, run, write_catalog):
    rows = [good_row(0), good_row(1, source_uri="s.png"), good_row(2, source_uri="s.png", mask_box="0,0,9,9")]
    planned = plan(write_catalog([*rows, good_row(3, mask_box="0,0,9,9"), rows[1]]))
    assert (planned.counts.to_do, planned.counts.edits_to_do, planned.counts.refused) == (3, 2, 2)
    assert dict(planned.describe())["of them edits"] == "2"
    assert [item.row.edits for item in planned.items()] == [False, True, True]
    calls = expected_unet_calls(SAMPLER) + 2 * expected_unet_calls(SAMPLER, edits=True)
    assert planned.estimate.num_unet_calls == round(calls)
    run(planned)
    assert plan(write_catalog(rows[:1])).counts.edits_to_do == 0
    assert "of them edits" not in dict(plan(write_catalog(rows[:1])).describe())
    assert plan(write_catalog(rows)).counts.to_do == 0
    other = SAMPLER.model_copy(update={"edit": EditConfig(guidance_scale=3.0)})
    assert (plan(write_catalog(rows), sampler=other).counts.to_do, other.digest()) == (2, SAMPLER.digest())


def test_expected_calls_of_an_edit_are_its_inversion_and_its_transfers():
    fixed = LoopConfig(stop="fixed", num_loops=2)
    # The subject and 19 steps up, then three times 20 steps down in two branches.
    assert expected_unet_calls(SamplerConfig(guidance_scale=1.0, loops=fixed), edits=True) == 20 + 3 * 2 * 20
    unguided = SamplerConfig(loops=fixed, edit=EditConfig(guidance_scale=1.0))
    assert expected_unet_calls(unguided, edits=True) == 20 + 3 * 20
    assert expected_unet_calls(SamplerConfig(mode="full_injection"), edits=True) == 50 + 100


small_rows = st.builds(
    lambda n, prompt, seed: {**good_row(n), "prompt": prompt, "seed": seed},
    st.integers(0, 3), st.sampled_from(["p", "q", ""]), st.sampled_from([None, "1", "x"]),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(st.lists(small_rows, min_size=1, max_size=12), st.sets(st.integers(0, 3).map("item {}".format)))
def test_any_catalog_ends_with_one_result_per_row(plan, run, write_catalog, tmp_path, rows, fail):
    for old in (tmp_path / "out/results").glob("*"):
        old.unlink()
    catalog = write_catalog(rows)
    first = plan(catalog)
    assert sum(states(first).values()) == len(rows)
    run(first, fail)
    assert states(plan(catalog))["done"] + states(plan(catalog))["failed_before"] == len(rows)
    results = list(ResultsLedger(RunOutput(str(tmp_path / "out"))).rows())
    assert sorted(row.row_index for row in results) == list(range(len(rows)))


def test_planning_is_light():
    code = (
        "import time; t = time.time(); import tasks.catalog.plan, sys; print(time.time() - t, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    seconds, torch_loaded = done.stdout.split()
    assert torch_loaded == "False"
    assert float(seconds) < 10, "an import of seconds makes every command slow"


cells = st.text(alphabet="ab é,;\"'\\\n\r\t[]{}:日\U0001f600", max_size=8)
any_rows = st.fixed_dictionaries(
    {
        "item_id": st.text(alphabet='ab/."\\ é', min_size=1, max_size=4).filter(str.strip),
        "subject_uri": st.lists(st.text(alphabet='ab",[é', min_size=1, max_size=4), min_size=1, max_size=4),
        "subject_class": cells,
        "prompt": cells,
        "negative_prompt": st.none() | cells,
        "seed": st.none() | st.sampled_from(["0", "7", "9007199254740993", "nan", "-1"]),
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.lists(any_rows, min_size=1, max_size=4))
def test_formats_agree_on_any_row(plan, write_catalog, rows):
    plans = [plan(write_catalog(rows, f"catalog.{suffix}")) for suffix in ("csv", "jsonl", "parquet")]
    items = [list(one.items()) for one in plans]
    assert items[0] == items[1] == items[2]
    refusals = [[(refusal.index, refusal.code) for refusal in one.refusals()] for one in plans]
    assert refusals[0] == refusals[1] == refusals[2]
