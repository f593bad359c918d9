"""Annotation files of the real size are read, sorted, stored and planned within 1.5 GiB."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ezigen.mini.world.full_size import (
    NUM_FRAMES,
    NUM_IMAGES,
    NUM_OBJECTS,
    NUM_TRACKS,
    NUM_VIDEOS,
    write_coco,
    write_instances,
    write_meta,
)

pytestmark = pytest.mark.slow

MAX_GIB = 1.5

_PLAN = """
import json, sys
from ezigen.config import PairConfig, PairInputs
from tasks.pairs import plan_pairs
from tasks.storage import OutputFolder
output, coco, videos = sys.argv[1:]
inputs = PairInputs(output_uri=output, coco_uri=coco, youtube_vis_uri=videos)
plan = plan_pairs(inputs, PairConfig(), OutputFolder(output))
sources = {name: [one.candidates, one.planned, one.groups, sum(one.not_selected.values()), sum(one.refused.values())]
           for name, one in plan.sources.items()}
# Of this program alone: ru_maxrss begins with what the process was that started it.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps({"peak_kib": peak, "sources": sources, "shards": len(plan.shards)}))
"""


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    write_coco(folder / "coco")
    write_instances(folder / "instances")
    write_meta(folder / "meta")
    return folder


def test_the_files_are_as_large_as_the_real_ones(data_sets):
    content = (data_sets / "coco/annotations/instances_train2014.json").read_bytes()
    assert content.count(b'"file_name": ') == NUM_IMAGES == 82_783
    assert content.count(b'"segmentation": ') == NUM_OBJECTS == 604_907
    assert len(content) > 200 * 2**20
    videos = json.loads((data_sets / "meta/meta.json").read_bytes())["videos"]
    assert len(videos) == NUM_VIDEOS == 2_238
    instances = (data_sets / "instances/instances.json").read_bytes()
    assert instances.count(b".jpg") == NUM_FRAMES == 62_000


@pytest.mark.parametrize("layout", ["instances", "meta"])
def test_planning_them_takes_at_most_one_and_a_half_gib(data_sets, tmp_path, layout):
    command = [sys.executable, "-c", _PLAN, *map(str, (tmp_path, data_sets / "coco", data_sets / layout))]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["peak_kib"] <= MAX_GIB * 2**20
    candidates, planned, groups, left_out, refused = found["sources"]["coco"]
    assert planned == 100_000 < candidates
    assert groups <= NUM_IMAGES
    assert candidates + left_out == NUM_OBJECTS
    assert refused == 0
    candidates, planned, groups, _, _ = found["sources"]["youtube_vis"]
    assert planned == 100_000 < candidates
    assert groups == NUM_TRACKS
    rows = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "plan").glob("*.parquet"))]
    assert len(rows) == found["shards"]
    stored = [pq.read_metadata(path).num_rows for path in (tmp_path / "units").iterdir()]
    assert sum(stored) == found["sources"]["coco"][2] + NUM_TRACKS
