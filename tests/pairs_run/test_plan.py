"""What is planned, against every candidate of the data sets sorted by brute force."""

import os
import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest

from ezigen.config import ConfigurationError
from ezigen.pairs import RefusalReason
from tasks.datasets.coco import CocoReader
from tasks.datasets.defects import Defect
from tasks.datasets.youtube_vis import YoutubeVisReader
from tasks.inspection import inspect_item, inspect_location
from tasks.pairs.defects import MAX_LISTED, DefectList
from tasks.pairs.sampling import group_hash
from tasks.storage import OutputFolder, RunOutput, RunRecord
from tests.pairs_run.conftest import CONFIG, Build, World, break_annotations, stored_bytes


def candidates(world) -> dict[str, list[tuple[int, int, str]]]:
    """(rank, hash, group) of every candidate by source, in the order in which they are to be taken."""
    units = [*CocoReader(str(world.coco)).read(CONFIG.coco)]
    units += YoutubeVisReader(str(world.youtube_vis)).read(CONFIG.youtube_vis)
    found = {"coco": [], "youtube_vis": []}
    for unit in units:
        place = group_hash(CONFIG.seed, unit.group_id)
        found[unit.source] += [(rank, place, unit.group_id) for rank in range(unit.num_candidates)]
    return {source: sorted(entries) for source, entries in found.items()}


def planned(folder) -> list[list[tuple[str, int]]]:
    """(group, rank) of every candidate in plan/, by shard."""
    shards = []
    for path in sorted((folder / "plan").glob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        shards.append([(row["group_id"], rank) for row in rows for rank in range(row["rank_start"], row["rank_stop"])])
    return shards


def test_every_group_gives_its_first_pair_before_any_gives_its_second(world, tmp_path):
    plan = Build(world.inputs(tmp_path)).plan()
    everything = candidates(world)
    wanted = {
        (group, rank) for source, n in (("coco", 40), ("youtube_vis", 30)) for rank, _, group in everything[source][:n]
    }
    shards = planned(tmp_path)
    taken = [candidate for shard in shards for candidate in shard]
    assert Counter(taken) == Counter(wanted)
    assert [group_hash(CONFIG.seed, group) for group, _ in taken] == sorted(
        group_hash(CONFIG.seed, g) for g, _ in taken
    )
    assert len(shards) == len(plan.shards) == len(plan.to_do)
    assert {source: len(everything[source]) for source in everything} == {
        source: one.candidates for source, one in plan.sources.items()
    }
    assert plan.sources["coco"].groups == len({group for _, _, group in everything["coco"]})
    assert ("coco: pairs wanted", "40") in plan.describe()


def test_more_wanted_than_there_is_takes_everything(world, tmp_path):
    plan = Build(world.inputs(tmp_path, num_coco_pairs=10**6)).plan()
    assert plan.sources["coco"].planned == plan.sources["coco"].candidates < 10**6
    assert plan.expected == plan.sources["coco"].candidates + 30


def test_a_look_writes_nothing_and_a_second_plan_reads_no_annotations(world, tmp_path):
    build = Build(world.inputs(tmp_path / "out"))
    looked = build.plan(store=False)
    assert not (tmp_path / "out").exists()
    first = build.plan()
    assert looked.sources["coco"].candidates == first.sources["coco"].candidates
    before = stored_bytes(tmp_path / "out")
    files = [world.coco / "annotations/instances_train2014.json", world.youtube_vis / "instances.json"]
    kept = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    try:
        for path, (data, mtime) in zip(files, kept, strict=True):
            path.write_bytes(b"?" * len(data))
            os.utime(path, ns=(mtime, mtime))
        assert build.plan() == first
    finally:
        for path, (data, mtime) in zip(files, kept, strict=True):
            path.write_bytes(data)
            os.utime(path, ns=(mtime, mtime))
    assert stored_bytes(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "settings", "named"),
    [
        ({}, {"seed": 4}, "pairs.seed 3, and now it is 4"),
        ({"num_coco_pairs": 41}, {}, "inputs.num_coco_pairs 40, and now it is 41"),
        ({"num_youtube_vis_pairs": 0}, {}, "inputs.num_youtube_vis_pairs 30, and now it is 0"),
    ],
)
def test_another_setting_in_the_same_output_is_named(world, tmp_path, changes, settings, named):
    Build(world.inputs(tmp_path)).plan()
    other = Build(world.inputs(tmp_path, **changes), CONFIG.model_copy(update=settings))
    with pytest.raises(ConfigurationError, match="choose another output_uri") as error:
        other.plan()
    assert named in str(error.value)


def test_an_output_that_holds_something_else_is_refused(world, tmp_path):
    output = RunOutput(str(tmp_path))
    output.write_run(RunRecord("run", "finished", "2026-01-01T00:00:00+00:00"))
    with pytest.raises(ConfigurationError, match="the output of personalize_catalog"):
        Build(world.inputs(tmp_path)).plan()
    with pytest.raises(ConfigurationError, match="no pairs are wanted"):
        Build(world.inputs(tmp_path / "new", num_coco_pairs=0, num_youtube_vis_pairs=0)).plan()


def test_a_plan_that_was_cut_off_is_made_again_without_its_remains(world, tmp_path):
    build = Build(world.inputs(tmp_path))
    build.plan()
    before = stored_bytes(tmp_path)
    (tmp_path / "plan/plan.json").unlink()
    (tmp_path / "plan/r0-00099.parquet").write_bytes(b"of a larger plan")
    (tmp_path / "units/00077.parquet").write_bytes(b"of a larger plan")
    build.plan()
    assert stored_bytes(tmp_path) == before


def test_what_is_wrong_with_annotations_is_listed(world, tmp_path):
    copy = World(tmp_path / "coco", world.youtube_vis)
    shutil.copytree(world.coco, copy.coco)
    break_annotations(copy.coco)
    build = Build(copy.inputs(tmp_path / "out"))
    plan = build.plan()
    assert plan.sources["coco"].refused == {"annotation_invalid": 1, "class_unknown": 2}
    assert ("coco: refused, class_unknown", "2") in plan.describe()
    assert "class_unknown" not in plan.sources["coco"].not_selected
    rows = pq.read_table(tmp_path / "out/refusals/annotations.parquet").to_pylist()
    assert Counter(row["reason"] for row in rows) == plan.sources["coco"].refused
    assert all(row["pair_id"].startswith("coco/train/") and row["message"] for row in rows)
    looked = Build(copy.inputs(tmp_path / "look")).plan(store=False)
    assert looked.sources["coco"].refused == plan.sources["coco"].refused

    seen = inspect_location(str(tmp_path / "out"))
    (refused,) = (table for table in seen.tables if table.title == "refused")
    assert dict(refused.rows) == {"annotation_invalid": "1", "class_unknown": "2"}
    wanted = next(row for row in rows if row["reason"] == "class_unknown")
    facts = dict(inspect_item(str(tmp_path / "out"), wanted["pair_id"]).facts)
    assert facts["message"] == "the category 999 is not listed"

    (tmp_path / "out/plan/plan.json").unlink()  # a plan that was cut off, and annotations that were put right
    shutil.rmtree(copy.coco)
    shutil.copytree(world.coco, copy.coco)
    build.plan()
    assert not list((tmp_path / "out/refusals").iterdir())


def test_a_file_that_is_wrong_throughout_is_listed_in_part(tmp_path):
    defects = DefectList("0" * 32)
    for number in range(MAX_LISTED + 5000):
        defects.add(Defect(f"coco/train/annotations[{number}]", "coco", "", RefusalReason.ANNOTATION_INVALID, "no id"))
    stored = defects.store(OutputFolder(str(tmp_path)))
    assert stored.rows == MAX_LISTED
    assert stored.num_bytes < 2_000_000
    assert pq.read_table(tmp_path / stored.path).column("pair_id")[-1].as_py().endswith(f"[{MAX_LISTED - 1}]")
    assert DefectList("0" * 32).store(OutputFolder(str(tmp_path))) is None
