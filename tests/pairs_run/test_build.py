"""One shard, built in this process."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ezigen.config import ConfigurationError
from ezigen.images import decode_picture
from ezigen.pairs import Box, cut_target
from tasks.datasets.drawing import PictureLimits
from tasks.pairs.build import PairWork, _row_groups
from tasks.pairs.schema import PAIRS_SCHEMA
from tasks.pairs.sources import open_data_sets
from tests.pairs_run.conftest import CONFIG, Build


def make_work(build: Build, **changes) -> PairWork:
    plan = build.plan()
    locations = {data.source: data.reader.locations for data in open_data_sets(build.inputs)}
    values = {"output": build.output, "identity": plan.identity, "config": build.config, "limits": PictureLimits()}
    return PairWork(**{**values, "locations": locations, **changes})


def test_targets_by_reference_can_be_cut_again(world, tmp_path):
    config = CONFIG.model_copy(update={"pairs_per_shard": 12})
    embedded = Build(world.inputs(tmp_path / "embed"), config)
    referred = Build(world.inputs(tmp_path / "reference"), config.model_copy(update={"targets": "reference"}))
    for build in (embedded, referred):
        report = make_work(build).make("r0-00000")
        assert report.rows == sum(report.counts.values()) > 0
    rows = pq.read_table(tmp_path / "reference/pairs/r0-00000.parquet").to_pylist()
    whole = {row["pair_id"]: row for row in pq.read_table(tmp_path / "embed/pairs/r0-00000.parquet").to_pylist()}
    assert {row["source"] for row in rows} == {"coco", "youtube_vis"}
    for row in rows:
        assert row["target"] is row["target_format"] is row["target_sha256"] is None
        assert row["subject_sha256"] == whole[row["pair_id"]]["subject_sha256"]
        data = Path(row["target_uri"]).read_bytes()
        assert row["target_source_sha256"] == hashlib.sha256(data).hexdigest()
        source = decode_picture(data).rgb
        again = np.asarray(cut_target(source, Box.from_list(row["target_crop"]), row["size_px"]))
        stored = np.asarray(Image.open(io.BytesIO(whole[row["pair_id"]]["target"])))
        np.testing.assert_array_equal(again, stored)


def test_jpeg_keeps_its_colours(world, tmp_path):
    build = Build(world.inputs(tmp_path), CONFIG.model_copy(update={"picture_format": "jpeg"}))
    make_work(build).make("r0-00000")
    row = pq.read_table(tmp_path / "pairs/r0-00000.parquet").slice(0, 1).to_pylist()[0]
    picture = Image.open(io.BytesIO(row["subject"]))
    assert picture.format == "JPEG"
    assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3  # no chroma subsampling
    assert row["subject_format"] == row["target_format"] == "jpeg"


def test_making_a_shard_again_gives_the_same_bytes(world, tmp_path):
    work = make_work(Build(world.inputs(tmp_path)))
    first = work.make("r0-00001")
    stored = [hashlib.sha256((tmp_path / file.path).read_bytes()).digest() for file in first.files]
    again = work.make("r0-00001")
    assert again.files == first.files
    assert [hashlib.sha256((tmp_path / file.path).read_bytes()).digest() for file in again.files] == stored


def test_pictures_beyond_the_limits_are_refused_one_by_one(world, tmp_path):
    report = make_work(Build(world.inputs(tmp_path)), limits=PictureLimits(max_side_px=64)).make("r0-00000")
    assert report.rows == 0
    assert set(report.refused) == {"picture_too_large"}
    assert pq.read_table(tmp_path / "pairs/r0-00000.parquet").schema.remove_metadata().equals(PAIRS_SCHEMA)


def test_a_shard_of_another_plan_is_refused(world, tmp_path):
    work = make_work(Build(world.inputs(tmp_path)), identity="0" * 32)
    with pytest.raises(ConfigurationError, match="belongs to another plan"):
        work.make("r0-00000")


def test_row_groups_stay_below_their_limit(world, tmp_path):
    make_work(Build(world.inputs(tmp_path))).make("r0-00000")
    rows = pq.read_table(tmp_path / "pairs/r0-00000.parquet").to_pylist()
    largest = max(len(row["subject"]) + len(row["subject_mask"]) + len(row["target"]) for row in rows)
    expected = [row["pair_id"] for row in rows]
    groups = list(_row_groups(rows, limit=2 * largest))
    assert [name for group in groups for name in group.column("pair_id").to_pylist()] == expected
    assert len(groups) > 1
    for group in groups:
        size = sum(len(row["subject"]) + len(row["subject_mask"]) + len(row["target"]) for row in group.to_pylist())
        assert size <= 2 * largest
    assert [len(group) for group in _row_groups([])] == [0]
