"""The plan: who stores what, what is refused before anything is written, and what is read again on resuming."""

import hashlib
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ezigen.config import ConfigurationError, RayConfig
from tasks.features.manifest import write_store
from tasks.features.ownership import KINDS, OwnershipBuilder
from tasks.features.stored_plan import PLAN_PATH, read_plan, write_plan
from tasks.storage import OutputFolder, RunRecord
from tests.features.pairs_files import by_reference, make_row, to_png, write_pairs
from tests.features.stage import Stage

# ---- ownership


def to_id(number: int) -> str:
    """Ids that differ in their lower half alone, or in their upper half alone, or are far apart."""
    return (f"{number:032x}", f"{number:016x}{'0' * 16}", f"{number:08x}" * 4)[number % 3]


@given(
    st.lists(
        st.lists(st.tuples(*[st.integers(0, 8)] * 3), max_size=7),
        max_size=6,
    )
)
def test_every_id_is_owned_by_the_first_pair_that_has_it(shards):
    builder = OwnershipBuilder(sum(map(len, shards)))
    for index, rows in enumerate(shards):
        builder.add(f"r0-{index:05d}", {kind: [to_id(row[k]) for row in rows] for k, kind in enumerate(KINDS)})
    owned = builder.build()

    assert list(owned) == [f"r0-{index:05d}" for index in range(len(shards))]
    for k, kind in enumerate(KINDS):
        seen: set[int] = set()
        for rows, one in zip(shards, owned.values(), strict=True):
            flags = one.rows(kind)
            assert len(flags) == one.num_pairs == len(rows)
            for row, owns in zip(rows, flags, strict=True):
                assert owns == (row[k] not in seen)
                seen.add(row[k])
            assert one.counts[kind] == flags.sum()


def test_deciding_takes_less_than_a_hundred_bytes_per_pair():
    def peak(num_pairs: int) -> int:
        rng = np.random.default_rng(0)
        ids = [bytes(row).hex() for row in rng.integers(0, 256, (1000, 16), np.uint8)]
        tracemalloc.start()
        builder = OwnershipBuilder(num_pairs)
        for shard in range(num_pairs // 1000):
            builder.add(str(shard), dict.fromkeys(KINDS, ids))
        builder.build()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert (peak(400_000) - peak(100_000)) / 300_000 < 100


# ---- the plan of a set


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """14 pairs in 4 shards, with subjects, targets and captions that several shards need."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        make_row(index, subject=f"s{index % 9}", subject_class="cup", target=f"t{index % 5}", caption=f"a {index % 11}")
        for index in range(13)
    ]
    rows.append(make_row(13, subject="s0", subject_class="dog"))  # the same picture under another name
    write_pairs(str(folder), rows)
    return folder


def test_counts_are_those_of_distinct_values(shared, tmp_path, tiny_folder):
    plan = Stage(shared, tmp_path / "store", tiny_folder).plan()
    assert (plan.num_pairs, plan.num_subjects, plan.num_targets, plan.num_texts) == (14, 10, 6, 12)
    assert plan.shards == plan.to_do == ("r0-00000", "r0-00001", "r0-00002", "r0-00003")
    assert plan.num_subjects_to_do == 10
    assert plan.estimate.rows == {"subjects": 10, "latents": 6, "texts": 12}
    assert ("pairs", "14") in plan.describe()
    assert not (tmp_path / "store").exists()


def test_hours_are_those_of_the_cluster_that_the_run_would_use(shared, tmp_path, tiny_folder):
    stage = Stage(shared, tmp_path / "store", tiny_folder)
    told = dict(stage.plan(cluster=RayConfig(accelerator="cpu", num_workers=2)).describe())["computing"]
    assert told.endswith("on 2 cpu workers at 0.1 TFLOP/s each")
    with pytest.raises(ConfigurationError, match=r"cluster\.accelerator"):
        stage.plan(cluster=RayConfig(accelerator="gpu"))


def test_references_are_the_same_target_only_if_picture_and_crop_are(tmp_path, tiny_folder):
    sources = [
        ("/a.png", b"a", [0, 0, 20, 20]),
        ("/a.png", b"a", [0, 0, 20, 20]),
        ("/a.png", b"a", [0, 0, 21, 21]),
        ("/b.png", b"b", [0, 0, 20, 20]),
        ("/a.png", b"replaced", [0, 0, 20, 20]),
        ("/copy of a.png", b"a", [0, 0, 20, 20]),
    ]
    rows = [by_reference(make_row(i), uri, crop, data) for i, (uri, data, crop) in enumerate(sources)]
    write_pairs(str(tmp_path / "pairs"), rows, pairs_per_shard=1)
    plan = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder).plan()
    assert [one.counts["targets"] for one in plan.owned.values()] == [1, 0, 1, 1, 1, 0]


def test_a_stored_plan_is_used_without_looking_at_the_pairs_again(shared, tmp_path, tiny_folder):
    stage = Stage(shared, tmp_path / "store", tiny_folder)
    plan = stage.plan()
    write_plan(stage.output, plan.identity, plan.pairs, dict(plan.owned))
    assert read_plan(stage.output, plan.identity, plan.pairs) == plan.owned

    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "manifest.json").write_bytes((shared / "manifest.json").read_bytes())  # and no pairs at all
    assert Stage(moved, tmp_path / "store", tiny_folder).plan().owned == plan.owned


# ---- what is refused


def refusal(stage: Stage, **inputs) -> str:
    with pytest.raises(ConfigurationError) as caught:
        stage.plan(**inputs)
    return str(caught.value)


def test_pairs_of_another_size_than_the_models(tmp_path, tiny_folder):
    write_pairs(str(tmp_path / "pairs"), [make_row(0), make_row(1, size_px=48)])
    message = refusal(Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder))
    assert "48 px" in message
    assert "32 px" in message
    assert "pairs.size_px=32" in message


def test_a_folder_without_finished_pairs(tmp_path, tiny_folder):
    stage = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder)
    assert "there are no pairs" in refusal(stage)
    write_pairs(str(tmp_path / "pairs"), [make_row(0)])
    (tmp_path / "pairs" / "manifest.json").rename(tmp_path / "manifest.json")
    assert "not finished" in refusal(stage)
    (tmp_path / "pairs" / "manifest.json").write_text(json.dumps({"kind": "features", "version": 1}))
    assert "not that of a set of pairs" in refusal(stage)
    (tmp_path / "pairs" / "manifest.json").write_text("{")
    assert "not that of a set of pairs" in refusal(stage)


def test_a_set_of_no_pairs(tmp_path, tiny_folder):
    write_pairs(str(tmp_path / "pairs"), [])
    assert "holds no pairs" in refusal(Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder))


def test_a_damaged_shard_of_pairs_is_named(tmp_path, tiny_folder):
    write_pairs(str(tmp_path / "pairs"), [make_row(index) for index in range(8)])
    path = tmp_path / "pairs" / "pairs" / "r0-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in refusal(Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder))
    path.unlink()
    assert str(path) in refusal(Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder))


def test_a_store_that_would_become_too_large(shared, tmp_path, tiny_folder):
    stage = Stage(shared, tmp_path / "store", tiny_folder)
    gib = stage.plan().estimate.total_bytes / 2**30
    assert stage.plan(max_gib=gib * 1.01).to_do
    message = refusal(stage, max_gib=gib * 0.99)
    assert "inputs.max_gib" in message
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("dtype", ["fp16", "fp8"])
def test_a_foreground_store_weighs_what_the_masks_of_some_subjects_say(tmp_path, tiny_folder, dtype):
    def subjects_bytes(sides: tuple[int, ...]) -> tuple[float, int, str]:
        """Planned and stored bytes of 24 subjects under square masks, and what the plan says of their share."""
        rows = [make_row(index) for index in range(24)]
        for index, row in enumerate(rows):
            mask = np.zeros((32, 32), np.uint8)
            mask[: sides[index % len(sides)], : sides[index % len(sides)]] = 255
            row["subject_mask"] = to_png(Image.fromarray(mask))
            row["mask_sha256"] = hashlib.sha256(row["subject_mask"]).hexdigest()
        folder = tmp_path / "-".join(map(str, sides))
        write_pairs(str(folder / "pairs"), rows, pairs_per_shard=8)
        stage = Stage(folder / "pairs", folder / "store", tiny_folder, tokens="foreground", dtype=dtype)
        plan = stage.plan()
        stage.make_here(plan)
        index = pq.read_table(folder / "store/index.parquet", filters=[("table", "=", "subjects")]).to_pylist()
        stored = sum(sum(row["lengths"][2:]) for row in index)  # all but the id and the class
        assert stage.plan().finished
        return 24 * plan.estimate.bytes_per_subject, stored, dict(plan.describe())["foreground tokens"]

    small, stored_small, told_small = subjects_bytes((4, 8, 12))
    large, stored_large, told_large = subjects_bytes((24, 28, 32))
    assert small == pytest.approx(stored_small, rel=0.03)
    assert large == pytest.approx(stored_large, rel=0.03)
    assert large > 2 * small
    assert told_small.endswith("of all numbers, by the masks of 24 subjects")
    assert int(told_small.split("%")[0]) < 30 < int(told_large.split("%")[0])


def test_a_damaged_mask_is_named_by_the_plan(tmp_path, tiny_folder):
    write_pairs(str(tmp_path / "pairs"), [make_row(0, subject_mask=b"no picture")])
    stage = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder, tokens="foreground")
    assert f"{tmp_path / 'pairs'}/pairs/r0-00000.parquet is damaged" in refusal(stage)


@pytest.mark.parametrize(
    ("changes", "named"), [({"t_sub": 5}, "t_sub 1, but t_sub 5"), ({"dtype": "fp8"}, "dtype fp16, but dtype fp8")]
)
def test_a_store_of_other_features(shared, tmp_path, tiny_folder, changes, named):
    stage = Stage(shared, tmp_path / "store", tiny_folder)
    write_store(stage.output, stage.plan().identity)
    assert named in refusal(Stage(shared, tmp_path / "store", tiny_folder, **changes))


def test_a_store_that_another_precision_of_the_networks_began(shared, tmp_path, tiny_folder):
    stage = Stage(shared, tmp_path / "store", tiny_folder)
    identity = stage.plan().identity
    assert identity.network_dtype == "fp32"  # "auto" on a CPU
    write_store(stage.output, identity)
    stage.model = stage.model.model_copy(update={"dtype": "bf16"})
    message = refusal(stage)
    assert "network_dtype fp32, but network_dtype bf16 is wanted" in message
    assert "set model.dtype" in message


def test_a_store_of_other_pairs(shared, tmp_path, tiny_folder):
    stage = Stage(shared, tmp_path / "store", tiny_folder)
    plan = stage.plan()
    write_plan(stage.output, plan.identity, plan.pairs, dict(plan.owned))
    write_pairs(str(tmp_path / "others"), [make_row(99)])
    message = refusal(Stage(tmp_path / "others", tmp_path / "store", tiny_folder))
    assert "other pairs" in message
    assert str(shared) in message


def test_a_plan_that_cannot_be_read(shared, tmp_path, tiny_folder):
    stage = Stage(shared, tmp_path / "store", tiny_folder)
    stage.output.write(PLAN_PATH, random.Random(0).randbytes(500))
    assert PLAN_PATH in refusal(stage)


def test_a_folder_that_holds_something_else(shared, tmp_path, tiny_folder):
    assert "pairs_uri too" in refusal(Stage(shared, shared, tiny_folder))
    other = OutputFolder(str(tmp_path / "results"))
    other.write_run(RunRecord("run", "finished", "2026-01-01T00:00:00+00:00"))
    assert "personalize_catalog" in refusal(Stage(shared, tmp_path / "results", tiny_folder))
